// The reference TUS server with just enough of Roughy's assets beside it, on loopback.
// usage: node server.mjs <directory>; it prints its port, and ends with its standard input.
import http from "node:http";
import { randomUUID } from "node:crypto";
import { json } from "node:stream/consumers";
import { FileStore } from "@tus/file-store";
import { Server, Upload } from "@tus/server";

const datastore = new FileStore({ directory: process.argv[2] });
const tus = new Server({ path: "/files", datastore });

function asset(upload, host) {
  const complete = upload.offset === upload.size;
  return {
    id: upload.id,
    project_id: null,
    type: null,
    state: complete ? "processing" : "pending_upload",
    extension: null,
    size_bytes: complete ? upload.size : null,
    content_type: null,
    duration_seconds: null,
    language: null,
    created_at: "2026-01-01T00:00:00Z",
    upload_url: complete ? null : `http://${host}/files/${upload.id}`,
  };
}

async function assets(request, response) {
  const upload =
    request.method === "POST"
      ? await datastore.create(new Upload({ id: randomUUID(), size: (await json(request)).size_bytes, offset: 0 }))
      : await datastore.getUpload(request.url.split("/").at(-1));
  response.writeHead(request.method === "POST" ? 201 : 200, { "Content-Type": "application/json" });
  response.end(JSON.stringify(asset(upload, request.headers.host)));
}

const server = http.createServer((request, response) =>
  request.url.startsWith("/v1/assets") ? assets(request, response) : tus.handle(request, response),
);
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
process.stdin.on("end", () => process.exit()).resume();
