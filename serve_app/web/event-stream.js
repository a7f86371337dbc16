// A stream that is silent for so long (ms) counts as broken: the service sends a comment every 15 s.
const MAX_SILENCE = 45_000;

/**
 * Server-sent events of a body. `EventSource` cannot send the header of a key, so the page reads the stream itself.
 * @param {ReadableStream<Uint8Array>} body
 * @yields {{event: string, id: string, data: string}}
 */
export async function* readEvents(body, maxSilence = MAX_SILENCE) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let text = "", part; !(part = await inTime(reader.read(), maxSilence)).done; ) {
      // A line break may arrive in two parts.
      text = (text + part.value).replace(/\r\n/g, "\n");
      const blocks = text.split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const event = parseEvent(block);
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** The event of a block of lines; null for a comment. */
export function parseEvent(block) {
  const event = { event: "message", id: "", data: [] };
  for (const line of block.split("\n")) {
    const [, name, value] = /^([^:]*)(?:: ?)?(.*)$/.exec(line);
    if (name === "data") event.data.push(value);
    else if (name === "event" || name === "id") event[name] = value;
  }
  return event.data.length ? { ...event, data: event.data.join("\n") } : null;
}

function inTime(promise, ms) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("the stream is silent")), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}
