import { html, nothing } from "../vendor/lit-html/lit-html.js";
import * as api from "../api.js";
import { tierText } from "../quality.js";
import { scatter } from "../scatter.js";
import { define } from "./element.js";
import { Refreshed } from "./refreshed.js";

/** The view Quality: how far the images of each tier are from the exact ones, against how much faster they are. */
class QualityView extends Refreshed {
  period = 10000;
  load = async () => {
    const [measured, { models }] = await Promise.all([api.calibrations(), api.models()]);
    return { ...measured, configured: models.filter((model) => model.tiers.length) };
  };

  template() {
    return html`<div class="column">
      <h1>Quality</h1>
      <p>A tier makes an image faster and changes pixels. What each changes, compared with exact, was measured here.</p>
      ${this.problem && html`<p class="problem" role="alert">${this.problem}</p>`}
      ${this.found ? this.#body(this.found) : nothing}
    </div>`;
  }

  #body({ calibrations, runs, configured }) {
    const waiting = runs.filter((run) => run.ended_at === null);
    const failed = runs.filter((run) => run.problem !== null);
    const models = [...new Set(calibrations.map((each) => each.model))].sort();
    return html`
      ${waiting.length ? html`<p class="hint">${count(waiting.length, "calibration is", "calibrations are")} under way.</p>` : nothing}
      ${calibrations.length ? nothing : unmeasured(configured)}
      ${models.map((model) => modelSection(model, calibrations.filter((each) => each.model === model)))}
      ${failed.map((run) => html`<p class="hint">The calibration of ${at(run.created_at)} could not measure everything: ${run.problem}</p>`)}
    `;
  }
}

/** The tiers that could be measured, and how. */
function unmeasured(models) {
  if (!models.length) return html`<p class="muted">Nothing has been measured yet: no model has tiers. The guide docs/how-to/quality.md tells how to configure them.</p>`;
  return html`<p class="muted">Nothing has been measured yet.</p>
    ${models.map(({ id, tiers }) => html`<section class="quality-model" aria-label=${`Configured tiers of ${id}`}>
      <h2>${id}</h2>
      <dl class="settings">${tiers.map((tier) => html`<dt>${tier.quality}</dt>
        <dd>${tierText(tier)}${tier.needs_calibration ? "; refused until it is measured" : ""}</dd>`)}</dl>
    </section>`)}
    <p>To measure them, run this on a machine with the model's GPU:</p>
    <pre tabindex="0"><code>edits-server calibrate serve_config.yaml --prompts prompts.yaml --lora my_job/my_lora.safetensors</code></pre>
    <p>Or let the service measure: <a href=${new URL("redoc#tag/calibrations", api.base)}>POST /v1/calibrations</a>. The guide
      docs/how-to/quality.md has both step by step.</p>`;
}

function modelSection(model, measured) {
  const points = measured.filter((each) => each.is_current).map(pointOf);
  return html`<section class="quality-model">
    <h2>${model}</h2>
    ${points.length ? scatter(points, { x: "times as fast as exact", y: "PSNR of the worst image (dB)", title: `Tiers of ${model}: loss against speed` }) : nothing}
    <div class="wide" tabindex="0" role="region" aria-label=${`Tiers of ${model}`}>
      <table>
        <caption class="visually-hidden">Tiers of ${model}</caption>
        <thead>
          <tr>
            <th scope="col">Tier</th><th scope="col">LoRAs</th><th scope="col">Exact images</th><th scope="col">Times as fast</th>
            <th scope="col">PSNR, dB (worst, median)</th><th scope="col">SSIM (worst, median)</th>
            <th scope="col">Error of latents</th><th scope="col">Images</th><th scope="col">Measured</th>
          </tr>
        </thead>
        <tbody>${measured.map(row)}</tbody>
      </table>
    </div>
  </section>`;
}

function row({ tier, loras, loss, speedup, is_current: isCurrent, measured_at: measuredAt, set, steps, guidance_scales: scales }) {
  return html`<tr class=${isCurrent ? nothing : "muted"}>
    <th scope="row">${tier}</th>
    <td class="quality-loras">${breakable(names(loras))}</td>
    <td>${steps.join(" or ")} steps, guidance ${scales.join(" or ") || "unknown"}</td>
    <td>${speedup.toFixed(2)}</td>
    <td>${decibels(loss.psnr_db.worst)}, ${decibels(loss.psnr_db.median)}</td>
    <td>${loss.ssim.worst.toFixed(4)}, ${loss.ssim.median.toFixed(4)}</td>
    <td>${loss.latents === null ? "not measured" : loss.latents.toFixed(4)}</td>
    <td>${loss.cases} of ${set}</td>
    <td>${at(measuredAt)}${isCurrent ? nothing : html`<br /><span class="small">No longer valid: the tier or the checkpoint has changed.</span>`}</td>
  </tr>`;
}

function pointOf({ tier, loras, loss, speedup }) {
  const worst = loss.psnr_db.worst;
  return { group: tier, x: speedup, y: worst, label: `${tier}, ${names(loras)}: ${speedup.toFixed(2)} times as fast, ${decibels(worst)} dB` };
}

const names = (loras) => loras.map((lora) => lora.path).join(" and ") || "none";
/** A text that the browser may break after slashes. */
const breakable = (text) => text.split("/").map((part, index) => (index ? html`/<wbr />${part}` : part));
const decibels = (value) => (value === null ? "equal" : value.toFixed(1));
const count = (number, one, several) => `${number} ${number === 1 ? one : several}`;
const at = (time) => new Date(time).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });

define("quality-view", QualityView);
