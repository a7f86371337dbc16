/** What a request does at the moment, in words. Pure. */

const STAGES = {
  preparing: "reading the image and the LoRAs",
  waiting: "waiting for the device",
  decoding: "making the pixels",
  storing: "storing the image",
};

/** Where a job stands. */
export function stateOf(job) {
  if (job.status === "in_queue") return queueText(job.position);
  if (job.status === "succeeded") return "Finished";
  if (job.status === "failed") return "Failed";
  if (job.status === "canceled") return "Canceled";
  if (job.stage && STAGES[job.stage]) return sentence(STAGES[job.stage]);
  if (!job.steps) return "Starting";
  return job.step ? `Step ${job.step} of ${job.steps}` : `0 of ${job.steps} steps`;
}

function queueText(position) {
  if (position === null) return "In the queue";
  if (position === 0) return "Next in the queue";
  return `In the queue, ${position} ${position === 1 ? "image" : "images"} ahead`;
}

/** The predicted time, empty if there is none. */
export function etaOf(job) {
  if (job.eta === null || job.eta === undefined) return "";
  if (job.eta < 90) return `about ${Math.max(1, Math.round(job.eta))} s left`;
  return `about ${Math.round(job.eta / 60)} min left`;
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
