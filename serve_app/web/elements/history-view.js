import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import { live } from "../vendor/lit-html/directives/live.js";
import * as api from "../api.js";
import { hrefOf } from "../views.js";
import { Element, define } from "./element.js";
import "./history-card.js";
import "./record-field.js";
import "./result-view.js";

const PAGE = 24;
const STATUSES = { succeeded: "Finished", in_queue: "Waiting", in_progress: "Being made", failed: "Failed", canceled: "Canceled" };
const NO_FILTER = { status: "", model: "", lora: "", since: "", until: "" };

/** The view History: requests of the service with filters, or one of them: `#history/<request>` or `#history/<request>/<image>`. */
class HistoryView extends Element {
  static properties = ["path"];
  #filter = { ...NO_FILTER };
  #entries = [];
  #next = null;
  #problem = null;
  #isLoading = true;
  #isListed = false;
  #models = [];
  #loras = [];
  #compared = [];

  rendered() {
    const isList = !this.path?.length;
    if (isList && !this.#isListed) {
      this.#load();
      this.#loadNames();
    }
    this.#isListed = isList;
  }

  template() {
    const [id, index] = this.path ?? [];
    if (id) return html`<result-view .request=${id} .index=${Number(index) || 0}></result-view>`;
    return html`<div class="column">
      <div class="history-head">
        <h1>History</h1>
        <button type="button" @click=${() => this.#load()}>Refresh</button>
      </div>
      <record-field></record-field>
      ${this.#filters()}
      ${this.#problem && html`<p class="problem" role="alert">${this.#problem}</p>`}
      <ul class="history" aria-label="Requests" aria-busy=${this.#isLoading ? "true" : "false"}>
        ${repeat(this.#entries, (entry) => entry.request_id, (entry) => this.#entry(entry))}
      </ul>
      ${this.#comparison()}
      ${!this.#entries.length && !this.#isLoading && !this.#problem ? this.#nothing() : nothing}
      ${this.#next
        ? html`<div><button type="button" ?disabled=${this.#isLoading} @click=${() => this.#load(this.#next)}>Show more</button></div>`
        : nothing}
    </div>`;
  }

  #entry(entry) {
    const { request_id: id } = entry;
    return html`<li>
      <history-card .entry=${entry}></history-card>
      ${entry.images_done
        ? html`<label class="checkbox small">
            <input type="checkbox" .checked=${live(this.#compared.includes(id))} @change=${() => this.#toggle(id)} /> Compare
          </label>`
        : nothing}
    </li>`;
  }

  /** Choosing a third one gives up the first. */
  #toggle(id) {
    const others = this.#compared.filter((other) => other !== id);
    this.#compared = others.length < this.#compared.length ? others : [...others.slice(-1), id];
    this.update();
  }

  #comparison() {
    const [first, second] = this.#compared;
    if (!first) return nothing;
    return html`<div class="comparison card" role="status">
      ${second
        ? html`<a class="button" href=${hrefOf("compare", `${first}:0`, `${second}:0`)}>Compare the two</a>`
        : html`<span>Choose another result to compare.</span>`}
      <button type="button" class="text" @click=${() => this.#forgetComparison()}>Cancel</button>
    </div>`;
  }

  #forgetComparison() {
    this.#compared = [];
    this.update();
  }

  #filters() {
    const select = (name, label, options) => html`<label>${label}
      <select @change=${(event) => this.#set(name, event.target.value)}>
        <option value="">All</option>
        ${options.map(([value, title]) => html`<option value=${value} ?selected=${this.#filter[name] === value}>${title}</option>`)}
      </select>
    </label>`;
    const day = (name, label) => html`<label>${label}
      <input type="date" .value=${this.#filter[name]} @change=${(event) => this.#set(name, event.target.value)} />
    </label>`;
    return html`<form class="filters card" role="search" aria-label="Filters" @submit=${(event) => event.preventDefault()}>
      ${select("status", "Status", Object.entries(STATUSES))}
      ${this.#models.length > 1 ? select("model", "Model", this.#models.map((model) => [model, model])) : nothing}
      <label>LoRA
        <input type="search" list="history-loras" placeholder="Its whole path" .value=${this.#filter.lora}
          @change=${(event) => this.#set("lora", event.target.value.trim())} />
      </label>
      <datalist id="history-loras">${this.#loras.map((path) => html`<option value=${path}></option>`)}</datalist>
      ${day("since", "From")} ${day("until", "To")}
    </form>`;
  }

  #nothing() {
    const isFiltered = Object.values(this.#filter).some(Boolean);
    return isFiltered
      ? html`<p class="muted">No request fits these filters. <button type="button" class="text" @click=${this.#clear}>Show all</button></p>`
      : html`<p class="muted">There are no requests yet. <a href="#edit">Make an edit</a>, and it will be here.</p>`;
  }

  #set(name, value) {
    this.#filter = { ...this.#filter, [name]: value };
    this.#load();
  }

  #clear = () => {
    this.#filter = { ...NO_FILTER };
    this.#load();
  };

  async #load(cursor = "") {
    const filter = this.#filter;
    this.#isLoading = true;
    this.update();
    try {
      const page = await api.history({ ...filter, ...daysOf(filter), cursor, limit: PAGE });
      // Another filter was chosen meanwhile.
      if (filter !== this.#filter) return;
      this.#entries = cursor ? [...this.#entries, ...page.requests] : page.requests;
      this.#next = page.next_cursor;
      this.#problem = null;
    } catch (error) {
      if (filter !== this.#filter) return;
      this.#problem = error.message;
      if (!cursor) [this.#entries, this.#next] = [[], null];
    }
    this.#isLoading = false;
    this.update();
  }

  async #loadNames() {
    try {
      const [{ models }, { loras }] = await Promise.all([api.models(), api.loras("", "", 200)]);
      this.#models = models.map((model) => model.id);
      this.#loras = loras.map((lora) => lora.path);
      this.update();
    } catch {
      // The filters work without suggestions.
    }
  }
}

/** The days of a filter as times: from the beginning of the first to the end of the last one, in local time. */
function daysOf({ since, until }) {
  const day = (text, days) => {
    if (!text) return "";
    const moment = new Date(`${text}T00:00`);
    moment.setDate(moment.getDate() + days);
    return moment.toISOString();
  };
  return { since: day(since, 0), until: day(until, 1) };
}

define("history-view", HistoryView);
