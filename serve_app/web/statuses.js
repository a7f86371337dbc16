/** The statuses of requests, images and sweeps. Pure. */

const ENDED = ["succeeded", "failed", "canceled"];
const NAMES = { in_queue: "waiting", in_progress: "being made", failed: "failed", canceled: "canceled" };

/** Whether nothing more happens after this status. */
export const isEnd = (status) => ENDED.includes(status);

/** A status in words. */
export const statusText = (status) => NAMES[status] ?? status;
