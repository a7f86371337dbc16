import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { change, draft } from "../draft.js";
import { PLANNED, plan, plans } from "../plan.js";
import { Element, define } from "./element.js";

/** What the edit will do, before it is sent: the service's own explanation with its notes. */
class PlanSummary extends Element {
  connected() {
    this.listen(plans, PLANNED, () => this.update());
  }

  template() {
    const { explanation, problem, isLate } = plan;
    if (problem) return html`<p class="problem small" role="alert">${problem}</p>`;
    if (!explanation) return nothing;
    const effective = explanation.effective[0];
    return html`<div class="plan" ?data-late=${isLate}>
      <p class="small"><span class="label">What will be done:</span> ${summaryOf(effective)}</p>
      ${explanation.notes.map((note) => html`<p class="hint small">${note}</p>`)}
      ${this.#fixes(effective)}
      ${explanation.ignored.length
        ? html`<p class="hint small">Not used: ${explanation.ignored.join(", ")}</p>`
        : nothing}
    </div>`;
  }

  /** What a click can do about a note. */
  #fixes(effective) {
    const isTurned = effective.exif === "ignore" && effective.control_images.some((image) => image.exif_orientation);
    const [first] = effective.control_images;
    const isStretched = first && draft.size !== "input" && aspectDiffers(first.size, [effective.width, effective.height]);
    if (!isTurned && !isStretched) return nothing;
    return html`<div class="choices">
      ${isTurned ? html`<button type="button" @click=${() => change({ exif: "apply" })}>Turn the image upright</button>` : nothing}
      ${isStretched
        ? html`<button type="button" @click=${() => change({ size: "input", width: null, height: null })}>Use the image's shape</button>`
        : nothing}
    </div>`;
  }
}

// The service's own bound for a note about stretching.
const MAX_STRETCH = 1.02;

const DEFAULT_SAMPLER = "flowmatch";

function aspectDiffers([width, height], [otherWidth, otherHeight]) {
  const ratio = (width * otherHeight) / (height * otherWidth);
  return Math.max(ratio, 1 / ratio) > MAX_STRETCH;
}

function summaryOf(effective) {
  const loras = effective.loras.length;
  const parts = [
    `${effective.width}x${effective.height} pixels`,
    `${effective.sample_steps} ${effective.sample_steps === 1 ? "step" : "steps"}`,
    effective.guidance.guided ? `guidance ${effective.guidance_scale}` : "no guidance",
    draft.drawsSeed ? "a new seed" : `seed ${effective.seed}`,
    loras === 0 ? "no LoRA" : loras === 1 ? "1 LoRA" : `${loras} LoRAs`,
    effective.output_format,
    ...(effective.quality === "exact" ? [] : [`quality ${effective.quality}`]),
    ...(draft.sampler && draft.sampler !== DEFAULT_SAMPLER ? [`sampler ${draft.sampler}`] : []),
    ...(draft.vaeTiling ? ["VAE in tiles"] : []),
  ];
  const isFilledIn = draft.prompt.includes("[trigger]");
  return html`${parts.join(", ")}${isFilledIn ? html`; prompt: <q>${effective.prompt}</q>` : nothing}`;
}

define("plan-summary", PlanSummary);
