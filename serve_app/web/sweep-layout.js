/** A sweep as a table. Pure. */

const ROW_AXES = [
  ["prompt", "prompts", (value) => value],
  ["control_image", "control_images", (value, index) => `image ${index + 1}`],
  ["profile", "profiles", (value) => `profile ${value ?? "default"}`],
  ["quality", "qualities", (value) => `quality ${value}`],
  ["seed", "seeds", (value) => `seed ${value}`],
];

/**
 * LoRAs and strengths lie across the table, the other axes down.
 * @param {object} axes of a sweep, as the service answers
 * @returns {{columns: object[], rows: object[]}} each with `label`, and `place`: the indices of its values
 */
export function layoutOf(axes) {
  return { columns: columnsOf(axes), rows: rowsOf(axes) };
}

/** The cells of a sweep by their row and column. */
export function cellsByPlace(grid) {
  return new Map(grid.map((cell) => [keyOf(cell.place), cell]));
}

export function cellAt(cells, row, column) {
  return cells.get(keyOf({ ...row.place, ...column.place }));
}

function keyOf(place) {
  const names = ["checkpoint", "multiplier", ...ROW_AXES.map(([name]) => name)];
  return names.map((name) => place[name]).join(" ");
}

function columnsOf({ checkpoints, multipliers }) {
  return checkpoints.flatMap(({ path, step }, checkpoint) => {
    if (path === null) return [{ label: "without a LoRA", place: { checkpoint, multiplier: null } }];
    return multipliers.map((value, multiplier) => ({
      label: [checkpoints.length > 1 ? nameOf(path, step) : null, `at ${value}`].filter(Boolean).join(" "),
      title: path,
      place: { checkpoint, multiplier },
    }));
  });
}

function nameOf(path, step) {
  const name = path.split("/").at(-1).replace(/\.safetensors$/i, "");
  return step === null ? name : `step ${step.toLocaleString("en")}`;
}

function rowsOf(axes) {
  let rows = [{ labels: [], place: {} }];
  for (const [name, plural, labelOf] of ROW_AXES) {
    const values = axes[plural];
    const isVaried = values.length > 1;
    rows = rows.flatMap((row) =>
      values.map((value, index) => ({
        labels: isVaried ? [...row.labels, labelOf(value, index)] : row.labels,
        place: { ...row.place, [name]: index },
      })),
    );
  }
  return rows.map(({ labels, place }) => ({ label: labels.join(", ") || axes.prompts[0], place }));
}
