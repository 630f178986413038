// Sending a data file: in one piece, or in parts where it is large.

import { Unreachable, call, headersFor, refusal, sleep, watch } from "/assets/api.js";

/** The most that the server takes as one part. A file that is no longer than one is sent as it is. */
const PART_BYTES = 64 * 2 ** 20;
/** A part whose connection breaks is sent again, and it alone. */
const ATTEMPTS = 5;

/** The file that is made of it; `onProgress` is told the share that is sent. Raises what `call` raises. */
export function upload(file, { onProgress, signal }) {
  const sending = { onProgress: (bytes) => onProgress(Math.min(1, bytes / file.size)), signal };
  if (file.size > PART_BYTES) return uploadInParts(file, sending);
  return send("/files", { purpose: "fine-tune", file }, sending);
}

async function uploadInParts(file, { onProgress, signal }) {
  const body = { bytes: file.size, filename: file.name, mime_type: "text/jsonl", purpose: "fine-tune" };
  const { id } = await call("POST", "/uploads", { body, signal });
  try {
    const parts = [];
    for (let start = 0; start < file.size; start += PART_BYTES) {
      const data = file.slice(start, start + PART_BYTES);
      const sending = { onProgress: (bytes) => onProgress(start + Math.min(bytes, data.size)), signal };
      parts.push((await sendPatiently(`/uploads/${id}/parts`, { data }, sending)).id);
    }
    return (await call("POST", `/uploads/${id}/complete`, { body: { part_ids: parts }, signal })).file;
  } catch (error) {
    call("POST", `/uploads/${id}/cancel`).catch(() => {}); // it would expire by itself within the hour
    throw error;
  }
}

async function sendPatiently(path, fields, sending) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await send(path, fields, sending);
    } catch (error) {
      if (!(error instanceof Unreachable) || attempt === ATTEMPTS) throw error;
      await sleep(1000 * attempt, sending.signal);
    }
  }
}

/** Posts a form. Only this older way of asking tells how far it has come. */
function send(path, fields, { onProgress, signal }) {
  return new Promise((resolve, reject) => {
    const form = new FormData();
    for (const [name, value] of Object.entries(fields)) form.append(name, value);
    const request = new XMLHttpRequest();
    request.open("POST", `/v1${path}`);
    for (const [name, value] of Object.entries(headersFor())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => onProgress(event.loaded);
    request.onload = () => {
      if (request.status === 200) resolve(JSON.parse(request.responseText));
      else reject(refusal(request.status, request.responseText));
    };
    request.onerror = () => {
      watch();
      reject(new Unreachable());
    };
    request.onabort = () => reject(new DOMException("The upload was stopped.", "AbortError"));
    signal.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}
