// Uses the client of docs/how-to/clients.md, which lies next to this file as edits.mjs: `node edit.mjs URL PROXY KEY PHOTOGRAPH`.
// Prints what happened as JSON. Events are read through PROXY, which cuts connections.
import { readFile } from "node:fs/promises";
import { edits } from "./edits.mjs";

const [url, proxy, key, file] = process.argv.slice(2);
const service = edits(url, key);
const photograph = `data:image/png;base64,${await readFile(file, "base64")}`;
const body = (prompts, loras = ["job/lora.safetensors"]) => ({
  model: "qwen_image_edit",
  prompts: prompts.map((prompt) => ({ prompt, size: "64x64", sample_steps: 12, ctrl_img: photograph })),
  loras: loras.map((path) => ({ path })),
});

const { request_id: id } = await service.submit(body(["a", "b", "c", "d"]));
const happened = [];
for await (const each of edits(proxy, key).events(id)) happened.push(each);
const end = happened.at(-1);
const image = await service.call("GET", `/v1/requests/${id}/images/0`);

const again = [];
for await (const { event } of service.events(id)) again.push(event);

const { request_id: canceled } = await service.submit(body(["slow"]));
await service.cancel(canceled);
const last = [];
for await (const { event } of service.events(canceled)) last.push(event);

async function code(call) {
  try {
    await call();
  } catch (error) {
    return [error.code, error.message.length > 0, Object.keys(error.details ?? {})];
  }
}
const read = async (each) => {
  for await (const _ of each);
};
const said = {
  images: happened.filter(({ event }) => event === "image").map(({ data }) => data.image).sort(),
  ends: happened.filter(({ event }) => ["succeeded", "failed", "canceled"].includes(event)).length,
  end: [end.event, end.data.outputs.images.length],
  file: Buffer.from(await image.arrayBuffer()).toString(),
  again: again.at(-1),
  canceled: last.at(-1),
  errors: [
    await code(() => service.submit(body(["x"], ["no_such.safetensors"]))),
    await code(() => service.submit({ prompts: "x" })),
    await code(() => read(service.events("0".repeat(32)))),
    await code(() => edits(url, "edits_wrong").submit(body(["x"]))),
  ],
};
process.stdout.write(JSON.stringify(said));
