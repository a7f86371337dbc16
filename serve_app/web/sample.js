import * as api from "./api.js";
import { currentModel, remember } from "./catalog.js";
import { QUICK, change, draft } from "./draft.js";
import { addImages } from "./inputs.js";

// An edit that the small model of a first start makes well.
const PROMPT = "make it night";

/** Fill in an edit of the sample photograph, as far as the user has not filled in one. */
export async function useSample() {
  const blob = await (await fetch(new URL("sample.jpg", import.meta.url))).blob();
  const stored = addImages([new File([blob], "astronaut.jpg", { type: blob.type })], 1);
  if (!draft.prompt) change({ prompt: PROMPT, ...QUICK });
  if (!draft.loras.length) await addFittingLora();
  await stored;
}

async function addFittingLora() {
  const { loras } = await api.loras("", "", 20);
  remember(loras);
  const fitting = loras.find((lora) => lora.fits.includes(currentModel()?.id));
  if (fitting && !draft.loras.length) change({ loras: [{ path: fitting.path, multiplier: 1 }], lorasArePresets: false });
}
