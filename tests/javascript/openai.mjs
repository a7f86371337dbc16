// What a test does with OpenAI's own client: node openai.mjs BASE_URL IMAGE. Writes one object as JSON.
import { createReadStream, readFileSync } from "node:fs";
import OpenAI, { toFile } from "openai";

const [baseURL, image] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none" });
const lora = { path: "job/lora.safetensors", network_multiplier: 0.5 };

// An error as the client's users see it.
async function errorOf(promise) {
  try {
    await promise;
  } catch (error) {
    const { status, message, code, param, type } = error;
    return { kind: error.constructor.name, status, message, code, param, type, hasId: Boolean(error.requestID) };
  }
  return null;
}

async function streamed(body) {
  const events = [];
  for await (const event of await client.images.edit({ ...body, stream: true })) events.push(event);
  return events;
}

const file = () => createReadStream(image);
const named = () => toFile(readFileSync(image), "image.png", { type: "image/png" });
const seen = {
  preset: await client.images.edit({ model: "house-style", prompt: "[trigger] x", image: file(), size: "64x64" }),
  loras: await client.images.edit({ model: "qwen_image_edit", prompt: "x", image: file(), loras: [lora], seed: 7 }),
  json: await client.images.edit({
    model: "qwen_image_edit",
    prompt: "x",
    image: file(),
    loras: JSON.stringify([lora, { path: lora.path }]),
  }),
  two: await client.images.edit({ model: "two-images", prompt: "x", image: [await named(), await named()] }),
  several: await client.images.edit({ model: "house-style", prompt: "x", image: file(), n: 2, seed: 7 }),
  generated: await client.images.generate({ model: "posters", prompt: "x" }),
  stream: await streamed({ model: "house-style", prompt: "x", image: file(), partial_images: 2, steps: 9 }),
  errors: [
    await errorOf(client.images.edit({ model: "flux", prompt: "x", image: file() })),
    await errorOf(client.images.edit({ model: "house-style", prompt: "x", image: file(), mask: file() })),
    await errorOf(client.images.edit({ model: "house-style", prompt: "x", image: await toFile(Buffer.from("junk"), "a") })),
    await errorOf(client.images.generate({ model: "house-style", prompt: "x" })),
    await errorOf(client.images.edit({ model: "house-style", prompt: "fail", image: file() })),
    await errorOf(streamed({ model: "house-style", prompt: "fail", image: file() })),
  ],
};
seen.ids = [seen.preset, seen.generated].map((answer) => Boolean(answer._request_id));
process.stdout.write(JSON.stringify(seen));
