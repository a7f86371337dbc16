import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { live } from "../vendor/lit-html/directives/live.js";
import { LOADED, OUTPUT_FORMATS, PROFILES, currentModel, loads } from "../catalog.js";
import { CHANGED, change, changes, clearSettings, draft } from "../draft.js";
import { DICE, LOCKED, OPEN } from "../icons.js";
import { PLANNED, plan, plans } from "../plan.js";
import { lossText, qualitiesOf, tierOf } from "../quality.js";
import { Element, define } from "./element.js";
import { numberOf, shown, wholeNumberOf } from "./number-input.js";

// The largest seed that the service takes, and the number of those that the page rolls.
const MAX_SEED = "9223372036854775807";
const MAX_RANDOM_SEED = 2 ** 31;

/** Size, steps, guidance, seed and the settings that few need. An empty field means the service's own value. */
class SettingsField extends Element {
  connected() {
    this.listen(changes, CHANGED, () => this.update());
    this.listen(loads, LOADED, () => this.update());
    this.listen(plans, PLANNED, () => this.update());
  }

  template() {
    const model = currentModel();
    const effective = plan.explanation?.effective[0];
    return html`
      ${this.#size(model, effective)}
      ${this.#quality(model, effective)}
      <div class="row">
        ${this.#number("steps", "Steps", effective?.sample_steps ?? model?.default_steps, { min: 1, max: 150, step: 1 })}
        ${this.#number("guidance", "Guidance", effective?.guidance_scale ?? model?.default_guidance_scale, { min: 0, max: 20, step: 0.5 })}
      </div>
      ${this.#seed(effective)}
      <details class="more">
        <summary>More settings</summary>
        <div class="stack">
          <div>
            <label for="neg">Negative prompt</label>
            <textarea id="neg" rows="2" .value=${live(draft.neg)} @input=${(event) => change({ neg: event.target.value })}></textarea>
            <p class="muted small">Used only if guidance is above 1.</p>
          </div>
          <div>
            <label for="trigger">Trigger word</label>
            <input id="trigger" type="text" .value=${live(draft.triggerWord)} placeholder="the one that the LoRA's file names"
              @input=${(event) => change({ triggerWord: event.target.value })} />
            <p class="muted small">Replaces <code>[trigger]</code> in the prompt.</p>
          </div>
          <div class="row">
            ${this.#select("profile", "Profile", PROFILES, effective?.profile)}
            ${this.#select("outputFormat", "Format", OUTPUT_FORMATS, effective?.output_format)}
          </div>
          <div class="row">
            ${this.#select("priority", "Priority", ["interactive", "bulk"], "interactive")}
            ${this.#select("exif", "EXIF rotation", ["ignore", "apply"], effective?.exif)}
          </div>
          <div><button type="button" class="text" @click=${clearSettings}>Reset all settings</button></div>
        </div>
      </details>
    `;
  }

  /** The tiers that the model has; nothing if it has none. */
  #quality(model, effective) {
    const names = qualitiesOf(model, draft.quality);
    if (names.length < 2) return nothing;
    // Without a preset, which may set a tier, the default is exact: both are one choice.
    const isExact = !draft.preset;
    const chosen = isExact && draft.quality === names[0] ? "" : (draft.quality ?? "");
    const own = isExact ? names[0] : effective && !draft.quality ? `default: ${effective.quality}` : "default";
    const loss = effective?.quality === draft.quality && !plan.isLate ? lossText(effective) : "";
    return html`<div>
      <label for="quality">Quality</label>
      <select id="quality" .value=${live(chosen)} @change=${(event) => this.#chooseQuality(model, event.target.value || null)}>
        <option value="" ?selected=${!chosen}>${own}</option>
        ${names.slice(isExact ? 1 : 0).map((name) => html`<option value=${name} ?selected=${name === chosen}>${name}</option>`)}
      </select>
      ${loss ? html`<p class="muted small">${loss}</p>` : nothing}
    </div>`;
  }

  /** What the tier sets itself is taken out of the draft: another value would be refused. */
  #chooseQuality(model, quality) {
    const tier = tierOf(model, quality);
    const fixed = {
      ...(tier?.sample_steps != null && { steps: null }),
      ...(tier?.guidance_scale != null && { guidance: null }),
      ...(tier?.sampler != null && { sampler: null }),
    };
    change({ quality, ...fixed });
  }

  #size(model, effective) {
    const takesImages = model?.max_control_images > 0;
    const effectiveSize = effective ? `${effective.width}x${effective.height}` : "";
    const choice = (value, text) => html`<label class="choice">
      <input type="radio" name="size" value=${value} .checked=${live(draft.size === value)} @change=${() => this.#chooseSize(value, effective)} />
      <span>${text}</span>
    </label>`;
    return html`<fieldset>
      <legend class="label">Size <span class="muted small regular">${effectiveSize}</span></legend>
      <div class="choices">
        ${takesImages ? choice("input", "As the image") : nothing}
        ${choice("default", draft.preset ? "The preset's" : "Standard")}
        ${choice("custom", "Custom")}
      </div>
      ${draft.size === "custom" ? this.#sides(model, effective) : nothing}
    </fieldset>`;
  }

  #sides(model, effective) {
    const side = (name, label) => html`<div>
      <label for=${name}>${label}</label>
      <input id=${name} type="number" min="64" max="4096" step=${model?.resolution_divisor ?? 1} .value=${shown(name, draft[name])}
        @change=${(event) => change({ [name]: numberOf(event.target) })} @blur=${() => this.update()} />
    </div>`;
    const isSnapped = effective && (effective.width !== draft.width || effective.height !== draft.height);
    return html`
      <div class="row sides">${side("width", "Width")}${side("height", "Height")}</div>
      ${isSnapped && !plan.isLate
        ? html`<p class="muted small">The image will have ${effective.width}x${effective.height} pixels.</p>`
        : nothing}
    `;
  }

  #chooseSize(size, effective) {
    const sides = size === "custom" && { width: effective?.width ?? draft.width, height: effective?.height ?? draft.height };
    change({ size, ...sides });
  }

  #number(name, label, own, { min, max, step }) {
    return html`<div>
      <label for=${name}>${label}</label>
      <input id=${name} type="number" min=${min} max=${max} step=${step} placeholder=${own ?? ""} .value=${shown(name, draft[name])}
        @change=${(event) => change({ [name]: numberOf(event.target) })} @blur=${() => this.update()} />
    </div>`;
  }

  #seed(effective) {
    const set = (event) => change({ seed: wholeNumberOf(event.target), drawsSeed: false });
    const roll = () => change({ seed: Math.floor(Math.random() * MAX_RANDOM_SEED), drawsSeed: false });
    const toggle = () => change({ drawsSeed: !draft.drawsSeed });
    return html`<div>
      <label for="seed">Seed</label>
      <div class="with-buttons">
        <input id="seed" type="number" min="0" max=${MAX_SEED} step="1" ?disabled=${draft.drawsSeed} @change=${set}
          placeholder=${draft.drawsSeed ? "another one for each edit" : (effective?.seed ?? "")}
          @blur=${() => this.update()} .value=${draft.drawsSeed ? live("") : shown("seed", draft.seed)} />
        <button type="button" class="icon" aria-label="Another seed" title="Another seed" @click=${roll}>${DICE}</button>
        <button type="button" class="icon" aria-pressed=${!draft.drawsSeed} aria-label="Keep the seed"
          title=${draft.drawsSeed ? "Each edit gets another seed" : "The seed is kept"} @click=${toggle}>
          ${draft.drawsSeed ? OPEN : LOCKED}
        </button>
      </div>
    </div>`;
  }

  #select(name, label, values, own) {
    const value = draft[name] ?? "";
    return html`<div>
      <label for=${name}>${label}</label>
      <select id=${name} .value=${live(value)} @change=${(event) => change({ [name]: event.target.value || null })}>
        <option value="" ?selected=${!value}>${own && !draft[name] ? `default: ${own}` : "default"}</option>
        ${values.map((each) => html`<option value=${each} ?selected=${each === value}>${each}</option>`)}
      </select>
    </div>`;
  }
}

define("settings-field", SettingsField);
