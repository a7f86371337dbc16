import { html, nothing } from "../vendor/lit-html/lit-html.js";
import * as api from "../api.js";
import { forgetBlobs } from "../blobs.js";
import { forgetAll } from "../state.js";
import { hrefOf } from "../views.js";
import { define } from "./element.js";
import { Refreshed } from "./refreshed.js";

/** The view Operation: models, editors, queues and recent errors, as far as the caller's key may see them. */
class OperationView extends Refreshed {
  load = api.operation;

  template() {
    return html`<div class="column">
      <h1>Operation</h1>
      ${this.problem && html`<p class="problem" role="alert">${this.problem}</p>`}
      ${this.found ? this.#body(this.found) : nothing}
      <h2>This tab</h2>
      <p>
        This browser keeps ${api.apiKey() !== null ? "your API key, " : ""}your settings and the photographs that you gave
        to this page for this tab alone. When you have closed it, the photographs are deleted as the page is next opened.
      </p>
      <div><button type="button" @click=${this.#forget}>Forget them now</button></div>
    </div>`;
  }

  #body(status) {
    return html`
      <p>${count(status.waiting, "image waits", "images wait")}, editors work on ${count(status.working, "image", "images")}.</p>
      <div class="wide" tabindex="0" role="region" aria-label="Table">
        <table>
          <caption class="visually-hidden">Models</caption>
          <thead>
            <tr><th scope="col">Model</th><th scope="col">Editors</th><th scope="col">Waiting</th><th scope="col">Being made</th><th scope="col">Wait of a new image</th></tr>
          </thead>
          <tbody>${status.models.map(modelRow)}</tbody>
        </table>
      </div>
      <h2>Recent errors</h2>
      ${this.#errors(status)}
      <p class="muted small">
        Version ${status.version} ·
        <a href=${new URL("docs", api.base)}>Try the API</a> · <a href=${new URL("redoc", api.base)}>Read about it</a> ·
        <a href=${new URL("openapi.json", api.base)}>OpenAPI document</a>
      </p>
    `;
  }

  #errors({ recent_errors: errors, sees_history: seesHistory }) {
    if (!seesHistory) return html`<p class="muted">Without API keys, the service shows who has asked for what only if history_without_keys is set in its config, and only on its own machine.</p>`;
    if (!errors.length) return html`<p class="muted">No request of the last day has failed.</p>`;
    return html`<ul class="errors">${errors.map((error) => html`<li class="card">
      <p><a href=${hrefOf("history", error.request_id)}>${error.code ?? "Failed"}</a>
        <span class="muted small">${[at(error.at), error.model, error.tenant].filter(Boolean).join(" · ")}</span></p>
      <p class="error-text">${error.message}</p>
    </li>`)}</ul>`;
  }

  /** What this tab has kept is deleted: the key, the draft, the list of edits and the photographs. */
  #forget = async () => {
    await forgetBlobs();
    forgetAll();
    location.reload();
  };
}

function modelRow(model) {
  const starting = model.editors_starting ? `, ${model.editors_starting} starting` : "";
  const wait = model.predicted_wait_s;
  return html`<tr>
    <th scope="row">${model.id}</th>
    <td>${model.editors_running}${starting}</td>
    <td>${model.waiting}</td>
    <td>${model.working}</td>
    <td>${wait === null ? "not known yet" : wait === 0 ? "none" : `${wait.toFixed(wait < 10 ? 1 : 0)} s`}</td>
  </tr>`;
}

const count = (number, one, several) => `${number} ${number === 1 ? one : several}`;
const at = (time) => new Date(time).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });

define("operation-view", OperationView);
