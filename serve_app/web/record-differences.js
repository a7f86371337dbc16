/** In what two effective records differ. Pure. */

// The name of each value for people, in the order in which they are listed.
const NAMES = {
  model: "Model",
  preset: "Preset",
  prompt: "Prompt",
  neg: "Negative prompt",
  images: "Control images",
  loras: "LoRAs",
  size: "Size",
  sample_steps: "Steps",
  guidance_scale: "Guidance",
  seed: "Seed",
  sampler: "Sampler",
  quality: "Quality",
  profile: "Profile",
  output_format: "Format",
  exif: "EXIF rotation",
  vae_tiling: "VAE in tiles",
  quantization: "Quantization",
  feature_cache: "Feature cache",
};

/**
 * The values that differ, as `[name, first, second]`.
 * @param {object} first an effective record
 * @param {object} second an effective record
 * @returns {[string, string, string][]}
 */
export function differences(first, second) {
  const [a, b] = [valuesOf(first), valuesOf(second)];
  return Object.entries(NAMES)
    .filter(([key]) => a[key] !== b[key])
    .map(([key, name]) => [name, a[key], b[key]]);
}

function valuesOf(record) {
  const composed = {
    size: `${record.width}x${record.height}`,
    loras: (record.loras ?? []).map(loraText).join(", "),
    images: (record.control_images ?? []).map((image) => `${image.size.join("x")}, ${image.sha256.slice(0, 8)}`).join("; "),
  };
  const values = Object.keys(NAMES).map((key) => [key, textOf(composed[key] ?? record[key])]);
  return Object.fromEntries(values);
}

/** The id is part of it: another file under the same path is another LoRA. */
function loraText({ path, network_multiplier: multiplier, id }) {
  return `${path} at ${multiplier} (${String(id).slice(0, 8)})`;
}

function textOf(value) {
  return value === null || value === undefined || value === "" ? "none" : String(value);
}
