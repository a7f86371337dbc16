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
