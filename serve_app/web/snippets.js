import { stringify } from "./exact-json.js";

/** An edit as code that makes it again. Pure. */

const KEY = "EDITS_API_KEY";
// Fields of a request that the Python client and OpenAI's API call otherwise, and those that OpenAI's API has itself.
const PYTHON_NAMES = { sample_steps: "steps", guidance_scale: "guidance", neg: "negative_prompt" };
const OPENAI_NAMES = { sample_steps: "num_inference_steps", neg: "negative_prompt" };

/**
 * @typedef {object} Repeated
 * @property {string} base the service's address, with a slash at the end
 * @property {object} request of one image, as `effective.request` has it
 * @property {string[]} images where its control images are
 * @property {boolean} needsKey whether the service asks for a key; the code reads it from the environment
 */

/** @param {Repeated} edit */
export function asCurl({ base, request, needsKey }) {
  const key = needsKey ? ` \\\n  -H "authorization: Bearer $${KEY}"` : "";
  const body = stringify(request, 1);
  return `curl -s '${base.replaceAll("'", "%27")}v1/inference?wait=120' -H 'content-type: application/json'${key} -d @- <<'EOF'\n${body}\nEOF\n`;
}

/** @param {Repeated} edit */
export function asPython({ base, request, needsKey }) {
  const { prompts, loras, ...fields } = request;
  const { prompt, width, height, size, ...promptFields } = withoutImages(prompts[0]);
  const images = imagesIn(prompts[0]);
  const options = {
    ...fields,
    loras: (loras ?? []).map(({ path, network_multiplier }) => new Code(`Lora(${list([path, network_multiplier ?? 1])})`)),
    size: width && height ? new Code(`(${width}, ${height})`) : size,
    ...renamed(promptFields, PYTHON_NAMES),
  };
  const source = images.length === 1 ? images[0] : images;
  const client = `client = Client(${literal(base.replace(/\/$/, ""))})`;
  return `from edits_client import Client, Lora

${needsKey ? `# The key: the environment variable ${KEY}.\n` : ""}${client}
image = client.edit(
${[literal(source), literal(prompt), ...named(options)].map((line) => `    ${line},`).join("\n")}
)
image.save(${literal(`edit.${request.output_format ?? "png"}`)})
`;
}

/** @param {Repeated} edit */
export function asOpenAI({ base, request, images, needsKey }) {
  const { prompts, model, preset, output_format, ...fields } = request;
  const { prompt, width, height, size, ...promptFields } = withoutImages(prompts[0]);
  const further = sent({ ...fields, ...renamed(promptFields, OPENAI_NAMES) });
  const own = {
    model: preset ?? model,
    image: images.length ? new Code(images.length === 1 ? "images[0]" : "images") : null,
    prompt,
    size: width && height ? `${width}x${height}` : null,
    output_format,
    extra_body: further,
  };
  const method = images.length ? "edit" : "generate";
  const key = needsKey ? `os.environ[${literal(KEY)}]` : literal("none");
  return `import base64
${needsKey ? "import os\n" : ""}from pathlib import Path
${images.length ? "from urllib.request import Request, urlopen\n" : ""}
from openai import OpenAI

client = OpenAI(base_url=${literal(`${base}v1`)}, api_key=${key})
${images.length ? downloads(images) : ""}answer = client.images.${method}(
${named(own).map((line) => `    ${line},`).join("\n")}
)
Path(${literal(`edit.${output_format ?? "png"}`)}).write_bytes(base64.b64decode(answer.data[0].b64_json))
`;
}

/** Lines that download the control images: OpenAI's API takes files. */
function downloads(urls) {
  const headers = 'headers = {"Authorization": f"Bearer {client.api_key}"}';
  const lines = urls.map((url) => `    urlopen(Request(${literal(url)}, headers=headers)).read(),`);
  return `${headers}\nimages = [\n${lines.join("\n")}\n]\n`;
}

/** Text that is Python already. */
class Code {
  constructor(text) {
    this.text = text;
  }
}

/** A value as Python. A string of JSON is one of Python, too. */
function literal(value) {
  if (value instanceof Code) return value.text;
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${list(value)}]`;
  if (typeof value !== "object") return stringify(value);
  return `{${Object.entries(value).map(([name, inner]) => `${literal(name)}: ${literal(inner)}`).join(", ")}}`;
}

const list = (values) => values.map(literal).join(", ");
const named = (options) => Object.entries(sent(options)).map(([name, value]) => `${name}=${literal(value)}`);

function renamed(fields, names) {
  return Object.fromEntries(Object.entries(fields).map(([name, value]) => [names[name] ?? name, value]));
}

/** Without fields that say nothing. */
function sent(fields) {
  const says = (value) => value !== null && value !== undefined && value !== "" && value !== false;
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => says(value)));
}

const isImage = (name) => name.startsWith("ctrl_img");

function imagesIn(prompt) {
  return Object.keys(prompt).filter(isImage).sort().map((name) => prompt[name]);
}

function withoutImages(prompt) {
  return Object.fromEntries(Object.entries(prompt).filter(([name]) => !isImage(name)));
}
