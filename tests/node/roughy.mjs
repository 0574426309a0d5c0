// A small Roughy of its own, from the public documentation, around the TUS server of the authors of TUS. It shares nothing
// with the emulator. usage: node roughy.mjs <directory> <key> [difference …]: what it does unlike the documentation.
import crypto from "node:crypto";
import fs from "node:fs";
import http from "node:http";
import path from "node:path";
import { Readable } from "node:stream";
import { FileStore } from "@tus/file-store";
import { Server } from "@tus/server";
import { Upload } from "@tus/utils";

const [directory, key, ...differences] = process.argv.slice(2);
const differs = (name) => differences.includes(name);
const DAY = 86_400_000;
const MAX = 50 * 1024 ** 3;
const SECRET = crypto.randomBytes(24);
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
const ASSET_STATES = ["pending_upload", "processing", "pending_payment", "ready", "failed"];
const JOB_STATES = ["pending", "processing", "completed", "failed"];
const EVENTS = ["cut.completed", "cut.failed", "render.completed", "render.failed", "render.cancelled", "asset.ready",
  "asset.pending_payment", "asset.failed"];
const CODES = { 400: "bad_request", 401: "unauthenticated", 402: "insufficient_credits", 404: "not_found", 405: "bad_request",
  409: "conflict", 410: "gone", 412: "precondition_failed", 413: "payload_too_large", 415: "unsupported_media_type",
  422: "validation_error", 423: "conflict", 500: "internal_error" };

// ---- What it knows

let counter = 0;
const stamp = () => `${new Date().toISOString().slice(0, -1)}${String(counter++ % 1000).padStart(3, "0")}Z`;
function uuid7() {
  const bytes = crypto.randomBytes(16);
  bytes.writeUIntBE(Date.now(), 0, 6);
  bytes[6] = 0x70 | (bytes[6] & 0x0f);
  bytes[8] = 0x80 | (bytes[8] & 0x3f);
  return bytes.toString("hex").replace(/(.{8})(.{4})(.{4})(.{4})(.{12})/, "$1-$2-$3-$4-$5");
}
const tables = { projects: new Map(), assets: new Map(), cuts: new Map(), renders: new Map(), endpoints: new Map() };
const ledger = [];
const book = (type, delta, asset_id = null) =>
  ledger.push({ id: uuid7(), type, delta, asset_id, grant_id: null, stripe_invoice_id: null, created_at: stamp() });
book("topup", 20);
const balance = () => ledger.reduce((sum, entry) => sum + entry.delta, 0);

class Refusal extends Error {
  constructor(status, message, { code, fields, headers } = {}) {
    super(message);
    Object.assign(this, { status, code: code ?? CODES[status], fields, headers: headers ?? {} });
  }
}
const invalid = (field, message = "Invalid") => new Refusal(422, message, { fields: [{ field, message }] });
const find = (table, id, name) => {
  if (!UUID.test(id)) throw invalid(`path.${name}`);
  const found = tables[table].get(id);
  if (!found) throw new Refusal(404, "Not found.");
  return found;
};

// ---- Uploads

const store = new FileStore({ directory, expirationPeriodInMilliseconds: DAY });
store.extensions = ["termination", "expiration"];
// Whoever comes second waits for the first.
const held = new Map();
const locker = {
  newLock: (id) => ({
    async lock() {
      while (held.has(id)) await held.get(id).promise;
      held.set(id, Promise.withResolvers?.() ?? deferred());
    },
    async unlock() {
      const lock = held.get(id);
      held.delete(id);
      lock.resolve();
    },
  }),
};
function deferred() {
  let resolve;
  const promise = new Promise((done) => (resolve = done));
  return { promise, resolve };
}
const tus = new Server({ path: "/v1/uploads", datastore: store, locker, maxSize: MAX, lockDrainTimeout: DAY });
const ended = new Map();

function kindOf(head) {
  if (head.subarray(0, 4).equals(Buffer.from("RIFF"))) return ["audio", "wav", "audio/wav"];
  if (head.subarray(4, 8).equals(Buffer.from("ftyp"))) return ["video", "mp4", "video/mp4"];
  return null;
}
const fileOf = (asset) => path.join(directory, asset.upload_id);
const expires = (asset) => new Date(Date.parse(asset.created_at) + DAY).toUTCString();

async function upload(request, response, id) {
  response.setHeader("Tus-Resumable", "1.0.0");
  response.setHeader("Cache-Control", "no-store");
  if (request.method === "OPTIONS") return relay(await tus.handleWeb(webRequest(request)), response);
  if (!id) throw new Refusal(405, "Method not allowed.");
  if (request.headers["tus-resumable"] !== "1.0.0")
    throw new Refusal(412, "Tus-Resumable header missing or wrong version.", { headers: { "Tus-Version": "1.0.0" } });
  const asset = [...tables.assets.values()].find((each) => each.upload_id === id);
  const over = ended.get(id);
  if (over === "finished" && differs("finished-offset")) return finishedOffset(request, response, asset);
  if (over) throw new Refusal(over === "finished" ? 410 : 404, `The upload is ${over}.`);
  if (!asset) throw new Refusal(404, "Upload not found.");
  if (request.method === "HEAD") {
    const { offset } = await store.getUpload(id);
    response.writeHead(200, { "Upload-Offset": offset, "Upload-Length": asset.size, "Upload-Expires": expires(asset) });
    return response.end();
  }
  if (request.method === "DELETE") {
    ended.set(id, "cancelled");
    tables.assets.delete(asset.id);
    return relay(await tus.handleWeb(webRequest(request)), response);
  }
  if (request.method !== "PATCH") throw new Refusal(405, "Method not allowed.");
  return patch(request, response, asset);
}

function finishedOffset(request, response, asset) {
  if (!["HEAD", "PATCH"].includes(request.method)) throw new Refusal(409, "The upload is finished.");
  response.writeHead(request.method === "HEAD" ? 200 : 204, { "Upload-Offset": asset.size, "Upload-Length": asset.size });
  response.end();
}

async function patch(request, response, asset) {
  const id = asset.upload_id;
  if (request.headers["content-type"] !== "application/offset+octet-stream") throw new Refusal(415, "Wrong Content-Type.");
  const [claimed, length] = ["upload-offset", "content-length"].map((name) => request.headers[name] ?? "");
  if (!/^\d+$/.test(claimed) || !/^\d+$/.test(length)) throw new Refusal(400, "Missing / malformed TUS headers.");
  if (held.has(id) && differs("locked")) throw new Refusal(423, "The upload is locked.");
  const { offset } = await store.getUpload(id);
  if (Number(claimed) === offset) {
    if (offset + Number(length) > asset.size) throw new Refusal(413, "More bytes than declared.");
    if (offset + Number(length) < 64) throw new Refusal(409, "The first chunk must carry 64 bytes.");
  }
  const reply = await tus.handleWeb(webRequest(request));
  if (reply.status === 409) throw new Refusal(409, "Upload-Offset conflict.");
  if (reply.status >= 400) throw new Refusal(reply.status, "The chunk was not stored.");
  const head = Buffer.alloc(64);
  const file = fs.openSync(fileOf(asset));
  fs.readSync(file, head);
  fs.closeSync(file);
  const kind = kindOf(head);
  if (!kind) {
    ended.set(id, "rejected");
    if (differs("text-failed")) Object.assign(asset, { state: "failed", error_code: "not_media", error_message: "No media." });
    else tables.assets.delete(asset.id);
    throw new Refusal(409, "The bytes are neither audio nor video.");
  }
  [asset.type, asset.extension, asset.content_type] = kind;
  if (Number(reply.headers.get("upload-offset")) === asset.size) {
    ended.set(id, "finished");
    asset.state = "processing";
    setTimeout(() => process_(asset), 60);
  }
  return relay(reply, response);
}

function webRequest(request) {
  const hasBody = request.method === "PATCH";
  return new Request(`http://${request.headers.host}${request.url}`, {
    method: request.method,
    headers: request.headers,
    ...(hasBody ? { body: Readable.toWeb(request), duplex: "half" } : {}),
  });
}
function relay(reply, response) {
  for (const [name, value] of reply.headers) if (!name.startsWith("access-")) response.setHeader(name, value);
  response.writeHead(reply.status);
  response.end();
}

// ---- Processing

function process_(asset) {
  if (!tables.assets.has(asset.id)) return;
  if (asset.type === "video") {
    if (differs("charge-failures")) book("consume_asset", -1, asset.id);
    Object.assign(asset, { state: "failed", error_code: "probe_failed", error_message: "No streams were found." });
    return announce("asset.failed", { entity_id: asset.id, asset_id: asset.id });
  }
  const bytes = fs.readFileSync(fileOf(asset));
  const seconds = bytes.readUInt32LE(40) / bytes.readUInt32LE(28);
  asset.duration_seconds = differs("duration-number") ? seconds : seconds.toFixed(3);
  asset.state = "ready";
  book("consume_asset", -Math.ceil(seconds / 60), asset.id);
  announce("asset.ready", { entity_id: asset.id, asset_id: asset.id, previous_state: "processing" });
}

function announce(type, data) {
  const body = JSON.stringify({ type, data });
  const id = `msg_${crypto.randomBytes(12).toString("hex")}`;
  const time = Math.floor(Date.now() / 1000);
  const signature = crypto.createHmac("sha256", SECRET).update(`${id}.${time}.${body}`).digest("base64");
  const headers = { "svix-id": id, "svix-timestamp": String(time), "svix-signature": `v1,${signature}` };
  for (const endpoint of tables.endpoints.values())
    if (endpoint.event_types.includes(type))
      fetch(endpoint.url, { method: "POST", body, headers: { ...headers, "content-type": "application/json" } }).catch(() => {});
}

function start(job, complete) {
  setTimeout(() => job.state === "pending" && Object.assign(job, { state: "processing", started_at: stamp() }), 150);
  setTimeout(() => {
    if (job.state !== "processing") return;
    complete?.();
    Object.assign(job, { state: "completed", completed_at: stamp() });
  }, 400);
}

// ---- The API

const pending = (asset) => asset.state === "pending_upload";
function shownAsset(asset, detail) {
  const { upload_id, size, ...fields } = asset;
  fields.size_bytes = pending(asset) ? null : size;
  fields.upload_url = pending(asset) ? `${base}/v1/uploads/${upload_id}` : null;
  if (!detail) return fields;
  const ready = asset.state === "ready";
  return { ...fields, cuttable: ready, download_url: ready ? link(asset.id, fileOf(asset)) : null };
}
const sign = (id) => crypto.createHmac("sha256", SECRET).update(id).digest("hex");
const files = new Map();
function link(id, file) {
  files.set(id, file);
  return `${base}/bucket/${id}?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Expires=900&X-Amz-Signature=${sign(id)}`;
}

function listed(table, query, filters, shown) {
  const numbers = { limit: [1, differs("limit-clamped") ? 1e9 : 100, 20], offset: [0, 1e9, 0] };
  for (const [name, [least, most, usual]] of Object.entries(numbers)) {
    const text = query.get(name) ?? String(usual);
    if (!/^-?\d+$/.test(text) || Number(text) < least || Number(text) > most) throw invalid(`query.${name}`);
    numbers[name] = Number(text);
  }
  let items = [...(Array.isArray(table) ? table : tables[table].values())];
  if (!differs("oldest-first") || table !== "assets") items.reverse();
  for (const [name, value] of Object.entries(filters)) if (value != null) items = items.filter((each) => each[name] === value);
  const total = items.length;
  return { items: items.slice(numbers.offset, numbers.offset + numbers.limit).map(shown), total, ...numbers };
}
function state(query, states) {
  const found = query.get("state");
  if (found !== null && !states.includes(found)) throw invalid("query.state");
  return found;
}
function filter(query, name, table) {
  const id = query.get(name);
  if (id === null) return null;
  if (!UUID.test(id)) throw invalid(`query.${name}`);
  return find(table, id, name).id;
}
function text(body, name, least, most, required = true) {
  if (body[name] == null && !required) return null;
  if (typeof body[name] !== "string" || body[name].length < least || body[name].length > most) throw invalid(`body.${name}`);
  return body[name];
}
function usable(asset, early = "asset_processing") {
  if (asset.state === "failed") throw new Refusal(409, "The asset has failed.", { code: "asset_failed" });
  const headers = early === "asset_processing" ? { "Retry-After": "1" } : {};
  if (asset.state !== "ready") throw new Refusal(409, "The asset is not ready.", { code: early, headers });
}
function reference(body, name, table) {
  if (!UUID.test(body[name] ?? "")) throw invalid(`body.${name}`);
  return find(table, body[name], name);
}
const newJob = (asset) => ({ id: uuid7(), asset_id: asset.id, state: "pending", error_code: null, error_message: null,
  created_at: stamp(), started_at: null, completed_at: null });
const add = (table, row) => (tables[table].set(row.id, row), row);
function removeAsset(asset) {
  if (differs("refund") && ledger.some((entry) => entry.asset_id === asset.id)) book("refund", 1, asset.id);
  ended.set(asset.upload_id, ended.get(asset.upload_id) ?? "cancelled");
  tables.assets.delete(asset.id);
  for (const table of ["cuts", "renders"])
    for (const job of tables[table].values()) if (job.asset_id === asset.id) tables[table].delete(job.id);
}

const routes = {
  "GET /v1/users/me": () => ({ id: uuid7(), email: "a@b.example", name: "A", email_verified_at: null, deleted_at: null, created_at: stamp() }),
  "GET /v1/credits/balance": () => ({ balance: balance() }),
  "GET /v1/credits/history": ({ query }) => listed(ledger, query, {}, (entry) => entry),
  "POST /v1/projects": ({ body }) => [201, add("projects", { id: uuid7(), name: text(body, "name", 1, 256), state: "active",
    created_at: stamp(), updated_at: stamp(), archived_at: null })],
  "GET /v1/projects": ({ query }) => listed("projects", query, { state: state(query, ["active", "archived"]) ?? "active" },
    ({ archived_at, ...fields }) => fields),
  "GET /v1/projects/:project_id": ({ id }) => find("projects", id, "project_id"),
  "PATCH /v1/projects/:project_id": ({ id, body }) => {
    const project = find("projects", id, "project_id");
    if (body.state != null && !["active", "archived"].includes(body.state)) throw invalid("body.state");
    const name = text(body, "name", 1, 256, false) ?? project.name;
    const state = body.state ?? project.state;
    return Object.assign(project, { name, state, archived_at: state === "archived" ? stamp() : null, updated_at: stamp() });
  },
  "DELETE /v1/projects/:project_id": ({ id }) => {
    find("projects", id, "project_id");
    for (const asset of [...tables.assets.values()]) if (asset.project_id === id) removeAsset(asset);
    tables.projects.delete(id);
    return [204];
  },
  "POST /v1/assets": async ({ body }) => {
    const project = body.project_id === undefined ? null : reference(body, "project_id", "projects");
    if (!project) throw invalid("body.project_id");
    if (!Number.isInteger(body.size_bytes) || body.size_bytes < 64) throw invalid("body.size_bytes");
    if (body.size_bytes > MAX) throw new Refusal(413, "Too large.");
    if (body.language != null && !/^[A-Za-z]{2}$/.test(body.language)) throw invalid("body.language");
    if (balance() <= 0) throw new Refusal(402, "No credits.");
    const asset = add("assets", { id: uuid7(), project_id: project.id, upload_id: uuid7(), type: null, state: "pending_upload",
      extension: null, size: body.size_bytes, content_type: null, duration_seconds: null, error_code: null, error_message: null,
      language: body.language?.toLowerCase() ?? null, created_at: stamp() });
    await store.create(new Upload({ id: asset.upload_id, size: asset.size, offset: 0, metadata: {} }));
    const shown = shownAsset(asset);
    return [201, shown, { Location: shown.upload_url, "Tus-Resumable": "1.0.0", "Upload-Expires": expires(asset) }];
  },
  "GET /v1/assets": ({ query }) => listed("assets", query,
    { project_id: filter(query, "project_id", "projects"), state: state(query, ASSET_STATES) }, (asset) => shownAsset(asset)),
  "GET /v1/assets/:asset_id": ({ id }) => shownAsset(find("assets", id, "asset_id"), true),
  "DELETE /v1/assets/:asset_id": ({ id }) => (removeAsset(find("assets", id, "asset_id")), [204]),
  "POST /v1/cuts": ({ body }) => {
    const script = text(body, "script", 0, 100_000, false);
    const asset = reference(body, "asset_id", "assets");
    usable(asset);
    const known = [...tables.cuts.values()].find((cut) => cut.asset_id === asset.id && cut.script === script);
    if (known && !differs("cut-repeats")) return known;
    const cut = add("cuts", { ...newJob(asset), script });
    start(cut);
    return [201, cut, { Location: `${base}/v1/cuts/${cut.id}` }];
  },
  "GET /v1/cuts": ({ query }) => listed("cuts", query,
    { asset_id: filter(query, "asset_id", "assets"), state: state(query, JOB_STATES) }, (cut) => cut),
  "GET /v1/cuts/:cut_id": ({ id }) => find("cuts", id, "cut_id"),
  "GET /v1/cuts/:cut_id/export": ({ id, query }) => {
    const format = exported(id, query, ["edl", "fcpxml", "otio"]);
    if (format === "edl" && !query.get("frame_rate")) throw new Refusal(409, "Name a frame rate.", { code: "frame_rate_required" });
    return [200, `TITLE: a cut as ${format}\n`];
  },
  "GET /v1/cuts/:cut_id/subtitle/export": ({ id, query }) =>
    [200, exported(id, query, ["srt", "vtt"]) === "vtt" ? "WEBVTT\n\n00:00.000 --> 00:01.000\nA\n" : "1\n00:00:00,000 --> 00:00:01,000\nA\n"],
  "POST /v1/renders": ({ body }) => {
    const output = body.output ?? {};
    if (!["mp4", "mov", "m4a", "mp3"].includes(output.format)) throw invalid("body.output.format");
    if (output.audio_bitrate != null && ![128, 192, 256, 320].includes(output.audio_bitrate)) throw invalid("body.output.audio_bitrate");
    const isVideo = output.format.startsWith("m") && ["mp4", "mov"].includes(output.format);
    if (!isVideo && output.resolution != null) throw invalid("body.output.resolution");
    const asset = reference(body, "asset_id", "assets");
    usable(asset, isVideo ? "asset_not_ready" : "asset_processing");
    if (isVideo) throw new Refusal(409, "It has no picture.", { code: "unsupported_format" });
    if (body.cut_id != null && reference(body, "cut_id", "cuts").state !== "completed")
      throw new Refusal(409, "The cut is not completed.", { code: "modifier_not_ready" });
    const request = JSON.stringify([asset.id, body.cut_id ?? null, output]);
    const known = [...tables.renders.values()].find((each) => each.request === request);
    if (known) return shownRender(known);
    const render = add("renders", { ...newJob(asset), cut_id: body.cut_id ?? null, output, size_bytes: null, request });
    start(render, () => (render.size_bytes = asset.size));
    return [201, shownRender(render)];
  },
  "GET /v1/renders": ({ query }) => listed("renders", query,
    { asset_id: filter(query, "asset_id", "assets"), state: state(query, JOB_STATES) }, shownRender),
  "GET /v1/renders/:render_id": ({ id }) => {
    const render = find("renders", id, "render_id");
    const url = render.state === "completed" ? link(id, fileOf(tables.assets.get(render.asset_id))) : null;
    return { ...shownRender(render), download_url: url };
  },
  "DELETE /v1/renders/:render_id": ({ id }) => {
    const render = find("renders", id, "render_id");
    if (render.state === "completed") throw new Refusal(409, "The render is finished.");
    Object.assign(render, { state: "failed", error_code: "cancelled", error_message: "Cancelled.", completed_at: stamp() });
    return [204];
  },
  "POST /v1/webhook-endpoints": ({ body }) => {
    if (!/^(https:\/\/|http:\/\/127\.0\.0\.1)/.test(body.url)) throw invalid("body.url");
    if (!body.event_types?.length || body.event_types.some((each) => !EVENTS.includes(each))) throw invalid("body.event_types");
    const { url, event_types, description = null } = body;
    return [201, add("endpoints", { id: `ep_${crypto.randomBytes(8).toString("hex")}`, url, event_types, description })];
  },
  "GET /v1/webhook-endpoints": ({ query }) => listed("endpoints", query, {}, (endpoint) => endpoint),
  "DELETE /v1/webhook-endpoints/:endpoint_id": ({ id }) => {
    if (!tables.endpoints.delete(id)) throw new Refusal(404, "Not found.");
    return [204];
  },
};
const shownRender = ({ request, ...render }) => render;
function exported(id, query, formats) {
  const cut = find("cuts", id, "cut_id");
  const format = query.get("format");
  if (format === null) throw invalid("query.format", "Field required");
  if (!formats.includes(format)) throw new Refusal(409, "No such format.", { code: "unsupported_format" });
  if (cut.state !== "completed") throw new Refusal(409, "The cut is not completed.");
  return format;
}

function spec() {
  const paths = {};
  const own = [...Object.keys(routes), "HEAD /v1/uploads/:id", "PATCH /v1/uploads/:id", "DELETE /v1/uploads/:id", "GET /v1/teams"];
  for (const route of own) {
    const [method, name] = route.split(" ");
    (paths[name.replace(/:(\w+)/g, "{$1}")] ??= {})[method.toLowerCase()] = {};
  }
  paths["/v1/assets"].get.parameters = [{ name: "limit", in: "query", schema: { type: "integer", maximum: 100 } }];
  const object = (names, more = {}) => ({ properties: { ...Object.fromEntries(names.split(" ").map((name) => [name, {}])), ...more } });
  const job = "id asset_id state error_code error_message created_at started_at completed_at";
  const states = [...ASSET_STATES, ...(differs("new-state") ? ["quarantined"] : [])];
  return { openapi: "3.1.0", paths, components: { schemas: {
    AssetState: { enum: states }, JobState: { enum: JOB_STATES }, ProjectState: { enum: ["active", "archived"] },
    AssetDetail: object("id project_id type state extension size_bytes content_type duration_seconds language created_at " +
      "error_code error_message upload_url download_url cuttable mood"),
    Project: object("id state created_at updated_at archived_at", { name: { maxLength: 256 } }),
    Cut: object(job, { script: { maxLength: 100_000 } }),
    Render: object(`${job} cut_id output size_bytes download_url`),
    Entry: object("id type delta asset_id grant_id stripe_invoice_id created_at"),
    User: object("id email name email_verified_at deleted_at created_at"),
    Endpoint: object("id url event_types description"),
  } } };
}

function download(request, response, id, query) {
  if (query.get("X-Amz-Signature") !== sign(id)) return response.writeHead(403).end("<Error/>");
  const bytes = fs.readFileSync(files.get(id));
  const headers = differs("no-etag") ? {} : { ETag: `"${crypto.createHash("md5").update(bytes).digest("hex")}"` };
  const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "");
  if (!range) return response.writeHead(200, { ...headers, "Content-Length": bytes.length }).end(bytes);
  const part = bytes.subarray(Number(range[1]), Number(range[2]) + 1);
  const content = `bytes ${range[1]}-${range[2]}/${bytes.length}`;
  return response.writeHead(206, { ...headers, "Content-Length": part.length, "Content-Range": content }).end(part);
}

async function bodyOf(request) {
  if (!["POST", "PATCH"].includes(request.method)) return {};
  if (request.headers["content-type"] !== "application/json") throw new Refusal(415, "Content-Type must be application/json.");
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  try {
    return JSON.parse(Buffer.concat(chunks).toString());
  } catch {
    throw new Refusal(400, "No JSON.");
  }
}

async function answer(request, response) {
  const { pathname, searchParams: query } = new URL(request.url, base);
  const parts = pathname.split("/").slice(1);
  if (parts[0] === "bucket") return download(request, response, parts[1], query);
  if (pathname === "/v1/openapi.json") return response.writeHead(200, { "Content-Type": "application/json" }).end(JSON.stringify(spec()));
  if (request.headers.authorization !== `Bearer ${key}`) throw new Refusal(401, "No valid key.");
  if (parts[1] === "uploads") return await upload(request, response, parts[2]);
  const named = Object.keys(routes).filter((route) => {
    const wanted = route.split(" ")[1].split("/").slice(1);
    return wanted.length === parts.length && wanted.every((part, at) => part.startsWith(":") || part === parts[at]);
  });
  const route = named.find((each) => !each.includes(":") && each.startsWith(`${request.method} `)) ??
    named.find((each) => each.startsWith(`${request.method} `));
  if (!route) throw new Refusal(named.length ? 405 : 404, "No such operation.");
  const found = await routes[route]({ id: parts[2], query, body: await bodyOf(request) });
  const [status, content, headers] = Array.isArray(found) ? found : [200, found];
  const type = typeof content === "string" ? "text/plain" : "application/json";
  const body = content === undefined ? "" : typeof content === "string" ? content : JSON.stringify(content);
  response.writeHead(status, { ...headers, ...(body ? { "Content-Type": type, "Content-Length": Buffer.byteLength(body) } : {}) });
  response.end(body);
}

const server = http.createServer(async (request, response) => {
  response.setHeader("X-Request-Id", crypto.randomUUID());
  request.on("error", () => {});
  try {
    await answer(request, response);
  } catch (error) {
    const refusal = error instanceof Refusal ? error : new Refusal(500, String(error.message).split("\n")[0] || "Broken.");
    if (!(error instanceof Refusal)) console.error(error);
    if (response.headersSent || response.destroyed) return;
    const { code, message, fields } = refusal;
    const body = JSON.stringify({ error: { code, message, ...(fields ? { fields } : {}) } });
    response.writeHead(refusal.status, { ...refusal.headers, "Content-Type": "application/json", "Content-Length": Buffer.byteLength(body) });
    response.end(request.method === "HEAD" ? undefined : body);
  }
});
let base;
server.listen(0, "127.0.0.1", () => {
  base = `http://127.0.0.1:${server.address().port}`;
  console.log(server.address().port, `whsec_${SECRET.toString("base64")}`);
});
