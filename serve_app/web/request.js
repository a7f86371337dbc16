/** The draft as the body of a request, and back. Pure. */

const TRIGGER = "[trigger]";

/**
 * The body of a request for the draft's edit.
 * @param {object} draft see draft.js
 * @param {object|null} model the draft's model, as `/v1/models` describes it
 * @param {(path: string) => object|null} receiptOf what is known of a LoRA's file
 */
export function requestOf(draft, model, receiptOf = () => null) {
  const body = draft.preset ? { preset: draft.preset } : { model: draft.model };
  if (!draft.lorasArePresets) {
    body.loras = draft.loras.map(({ path, multiplier }) => ({ path, network_multiplier: multiplier }));
  }
  const named = draft.loras.some((lora) => receiptOf(lora.path)?.trigger_word);
  const word = draft.triggerWord || (named && draft.prompt.includes(TRIGGER) ? "auto" : null);
  const fields = { trigger_word: word, profile: draft.profile, quality: draft.quality, output_format: draft.outputFormat };
  Object.assign(body, sent({ ...fields, priority: draft.priority, exif: draft.exif, vae_tiling: draft.vaeTiling }));
  body.prompts = [{ prompt: draft.prompt, ...promptFields(draft), ...sizeOf(draft, model), ...imagesOf(draft, model) }];
  return body;
}

function promptFields(draft) {
  const seed = draft.drawsSeed ? -1 : draft.seed;
  return sent({ neg: draft.neg || null, sample_steps: draft.steps, guidance_scale: draft.guidance, seed, sampler: draft.sampler });
}

function sizeOf(draft, model) {
  if (draft.size === "custom") return sent({ width: draft.width, height: draft.height });
  return draft.size === "input" && model?.requires_control_image ? { size: "input" } : {};
}

function imagesOf(draft, model) {
  const names = usedImages(draft, model).map((image) => image.upload && `upload:${image.upload.id}`);
  if (names.length === 1) return sent({ ctrl_img: names[0] });
  return sent(Object.fromEntries(names.map((name, index) => [`ctrl_img_${index + 1}`, name])));
}

/** Whether a prompt has a LoRA's trigger word, as a word of its own, or `[trigger]`, which the service replaces by it. */
export function hasTrigger(prompt, word) {
  const escaped = word.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
  return prompt.includes(TRIGGER) || new RegExp(`(?<![\\p{L}\\p{N}_])${escaped}(?![\\p{L}\\p{N}_])`, "u").test(prompt);
}

/** The images of the draft that its model takes. */
export function usedImages(draft, model) {
  return draft.images.slice(0, model?.max_control_images ?? 1);
}

/** What the draft lacks before it can be sent: `image`, `prompt`, `lora`, `upload`. */
export function missingIn(draft, model) {
  const images = usedImages(draft, model);
  const missing = {
    image: model?.requires_control_image && !images.length,
    prompt: !draft.prompt.trim(),
    lora: model?.requires_lora && !draft.loras.length,
    upload: images.some((image) => !image.upload),
  };
  return Object.keys(missing).filter((name) => missing[name]);
}

/**
 * The fields of a draft that make the edit of a request's body again, as `effective.request` of a result has it. Its
 * images are not part of them.
 */
export function settingsOf(body) {
  const prompt = body.prompts[0];
  const isSized = prompt.width != null || prompt.height != null;
  return {
    model: body.model ?? null,
    preset: body.preset ?? null,
    prompt: prompt.prompt,
    neg: prompt.neg ?? "",
    triggerWord: body.trigger_word ?? "",
    loras: (body.loras ?? []).map((lora) => ({ path: lora.path, multiplier: lora.network_multiplier ?? 1 })),
    lorasArePresets: Boolean(body.preset) && body.loras == null,
    size: isSized ? "custom" : prompt.size === "input" ? "input" : "default",
    width: prompt.width ?? null,
    height: prompt.height ?? null,
    steps: prompt.sample_steps ?? null,
    guidance: prompt.guidance_scale ?? null,
    seed: prompt.seed ?? null,
    drawsSeed: false,
    profile: body.profile ?? null,
    quality: body.quality ?? null,
    outputFormat: body.output_format ?? null,
    priority: body.priority ?? null,
    exif: body.exif ?? null,
    sampler: prompt.sampler ?? null,
    vaeTiling: body.vae_tiling ?? null,
  };
}

function sent(fields) {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== null && value !== undefined));
}
