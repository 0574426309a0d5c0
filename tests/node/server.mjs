// The reference TUS server, on loopback and a port of its own choice, behind a bearer key.
import http from "node:http";
import { FileStore } from "@tus/file-store";
import { Server } from "@tus/server";

const [directory, key] = process.argv.slice(2);
const tus = new Server({
  path: "/files",
  datastore: new FileStore({ directory }),
  respectForwardedHeaders: true,
  async onIncomingRequest(request) {
    if (request.headers.get("authorization") !== `Bearer ${key}`) throw { status_code: 401, body: "who?" };
  },
});
const server = http.createServer((request, response) => tus.handle(request, response));
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
