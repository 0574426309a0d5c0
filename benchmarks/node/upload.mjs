// Uploads a file with the reference client as it comes, and prints what that cost.
// usage: node upload.mjs <file> <url>
import { createReadStream, readFileSync, statSync } from "node:fs";
import * as tus from "tus-js-client";

const [file, uploadUrl] = process.argv.slice(2);
const started = performance.now();
const cpu = process.cpuUsage();
new tus.Upload(createReadStream(file), {
  uploadUrl,
  uploadSize: statSync(file).size,
  retryDelays: null,
  onError: (error) => {
    console.error(error.message);
    process.exit(1);
  },
  onSuccess: () => {
    const wall = (performance.now() - started) / 1e3;
    const { user, system } = process.cpuUsage(cpu);
    const peak = Number(/VmHWM:\s+(\d+)/.exec(readFileSync("/proc/self/status", "utf8"))[1]) * 1024;
    console.log(JSON.stringify({ wall, cpu: (user + system) / 1e6, peak }));
    process.exit(0);
  },
}).start();
