/** The qualities of a model, and what was measured of them, in words. Pure. */

/**
 * What the form offers: what the model has, and what the draft has chosen, so that a choice of an earlier model stays
 * visible. Empty if the model has no tiers.
 * @param {object|null} model as `/v1/models` describes it
 * @param {string|null} chosen
 * @returns {string[]}
 */
export function qualitiesOf(model, chosen) {
  const names = model?.qualities ?? [];
  return chosen && !names.includes(chosen) ? [...names, chosen] : names;
}

/** What a model's tier does; null for `exact`, and for a tier that the model does not have. */
export function tierOf(model, quality) {
  return model?.tiers.find((tier) => tier.quality === quality) ?? null;
}

// The fields of the draft that a tier may set, by the tier's names for them.
const SETTINGS = { sample_steps: ["steps", "Steps"], guidance_scale: ["guidance", "Guidance"], sampler: ["sampler", "the sampler"] };

/**
 * Why the draft's edit cannot be made in one of these qualities: a tier with steps, guidance or a sampler of its own takes
 * no others. A sentence with the field to clear; empty if nothing is in the way.
 * @param {object} model as `/v1/models` describes it
 * @param {object} draft
 * @param {string[]} qualities
 */
export function conflictOf(model, draft, qualities) {
  for (const quality of qualities) {
    const tier = tierOf(model, quality);
    for (const [own, [field, label]] of Object.entries(SETTINGS)) {
      if (tier?.[own] == null || draft[field] === null || draft[field] === tier[own]) continue;
      return `The quality ${quality} sets ${label} to ${tier[own]}, and the form of the edit has ${draft[field]}. Clear ${label} there, or leave ${quality} out.`;
    }
  }
  return "";
}

/** What a tier sets and changes, in words. */
export function tierText({ sample_steps: steps, guidance_scale: guidance, sampler, quantization, feature_cache: cache, guidance_gate: gate }) {
  const parts = [
    steps !== null && `${steps} steps`,
    guidance !== null && `guidance ${guidance}`,
    sampler !== null && `sampler ${sampler}`,
    quantization !== "none" && `weights in ${quantization}`,
    cache !== null && `skips blocks that change by less than ${cache}`,
    gate !== null && `uses the negative prompt in ${Math.round(gate * 100)} % of the steps`,
  ];
  return parts.filter(Boolean).join(", ");
}

/** The measured loss in an effective record, as a sentence; empty for `exact`. */
export function lossText({ quality, loss }) {
  if (!quality || quality === "exact") return "";
  if (quality === "lossy") return "The model has options that change its images.";
  if (!loss) return "Its loss was not measured for these LoRAs.";
  const times = loss.tier_s > 0 ? ` ${(loss.exact_s / loss.tier_s).toFixed(1)} times as fast as exact;` : "";
  const psnr = loss.psnr_db.worst === null ? "equal images" : `PSNR ${loss.psnr_db.worst.toFixed(1)} dB at worst`;
  const ssim = loss.ssim.worst === null ? "" : `, SSIM ${loss.ssim.worst.toFixed(3)}`;
  const images = loss.cases === 1 ? "1 image" : `${loss.cases} images`;
  const day = new Date(loss.measured_at).toISOString().slice(0, 10);
  return `Measured:${times} ${psnr}${ssim}, over ${images} (${loss.on}, ${day}).`;
}

/** The quality of a record with its loss, in words; empty for records of versions without it. */
export function qualityText(record) {
  return record.quality ? [record.quality, lossText(record)].filter(Boolean).join(". ") : "";
}
