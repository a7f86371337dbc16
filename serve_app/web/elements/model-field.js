import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { live } from "../vendor/lit-html/directives/live.js";
import { LOADED, catalog, loads } from "../catalog.js";
import { CHANGED, change, changes, draft } from "../draft.js";
import { Element, define } from "./element.js";

/** The choice of a model or a preset. With one model and no preset there is nothing to choose. */
class ModelField extends Element {
  connected() {
    this.listen(changes, CHANGED, () => this.update());
    this.listen(loads, LOADED, () => this.update());
  }

  template() {
    const { models, presets } = catalog;
    if (!models.length) return nothing;
    if (models.length === 1 && !presets.length) return html`<p class="muted small">Model ${models[0].id}</p>`;
    const value = draft.preset ? `preset ${draft.preset}` : `model ${draft.model}`;
    return html`
      <label for="model">${presets.length ? "Model or preset" : "Model"}</label>
      <select id="model" .value=${live(value)} @change=${this.#choose}>
        ${models.map((model) => this.#option(`model ${model.id}`, model.id, value))}
        ${presets.length
          ? html`<optgroup label="Presets">
              ${presets.map((preset) => this.#option(`preset ${preset.name}`, preset.name, value, preset.problem))}
            </optgroup>`
          : nothing}
      </select>
      ${this.#problems(presets.filter((preset) => preset.problem))}
    `;
  }

  #problems(broken) {
    if (!broken.length) return nothing;
    return html`<details class="muted small">
      <summary>${broken.length === 1 ? "1 preset" : `${broken.length} presets`} cannot be used</summary>
      ${broken.map((preset) => html`<p>${preset.name}: ${preset.problem.message}</p>`)}
    </details>`;
  }

  #option(value, text, current, problem = null) {
    return html`<option value=${value} ?selected=${value === current} ?disabled=${Boolean(problem)}>${text}</option>`;
  }

  #choose = (event) => {
    const [kind, ...rest] = event.target.value.split(" ");
    const name = rest.join(" ");
    if (kind === "model") change({ model: name, preset: null, lorasArePresets: false });
    else choosePreset(catalog.presets.find((preset) => preset.name === name));
  };
}

/** The preset's LoRAs are shown; what else it sets applies where the draft sets nothing. */
function choosePreset(preset) {
  const loras = preset.loras.map((lora) => ({ path: lora.path, multiplier: lora.network_multiplier }));
  const size = preset.size ? "default" : draft.size;
  const unset = { steps: null, guidance: null, profile: null, quality: null, outputFormat: null, neg: "", triggerWord: "" };
  change({ ...unset, model: preset.model, preset: preset.name, loras, lorasArePresets: true, size });
}

define("model-field", ModelField);
