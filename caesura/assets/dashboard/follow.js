// A job's events, from its first to its last, as they come.

import { Refused, ask, readEvents, sleep } from "/assets/api.js";

/**
 * Gives `onEvents` every event of the job once, in order, in the groups they arrive in; `onCaughtUp` is called when
 * there is no more to read for now. Where the stream ends before the job does, it goes on behind the last event that
 * came. While nobody looks at the page nothing is followed: a browser has few connections to one server, and they are
 * for whoever looks.
 *
 * `once`: only what has been told by now. Resolves when there is no more to come.
 */
export async function follow(jobId, { onEvents, onCaughtUp, onFault, signal, once = false }) {
  let last;
  for (let failures = 0; ;) {
    await untilVisible(signal);
    const hidden = new AbortController();
    const leave = () => document.hidden && hidden.abort();
    document.addEventListener("visibilitychange", leave);
    try {
      const headers = last ? { "last-event-id": last } : {};
      const given = { query: { stream: true }, headers, signal: AbortSignal.any([signal, hidden.signal]) };
      const answer = await ask("GET", `/fine_tuning/jobs/${jobId}/events`, given);
      for await (const group of readEvents(answer)) {
        failures = 0;
        const told = group.filter((event) => event.id).map((event) => JSON.parse(event.data));
        last = told.at(-1)?.id ?? last;
        if (told.length) onEvents(told);
        if (group.some((event) => event.comment)) {
          onCaughtUp?.();
          if (once) {
            hidden.abort();
            return;
          }
        }
        if (group.some((event) => event.data === "[DONE]")) {
          onCaughtUp?.();
          return;
        }
      }
    } catch (error) {
      if (signal.aborted) throw error;
      if (error instanceof Refused) {
        onFault?.(error);
        if (error.status < 500 && error.status !== 429) return;
      }
      if (error.name !== "AbortError") failures += 1;
    } finally {
      document.removeEventListener("visibilitychange", leave);
    }
    await sleep(Math.min(5000, 250 * 2 ** failures), signal);
  }
}

function untilVisible(signal) {
  if (!document.hidden) return Promise.resolve();
  return new Promise((resolve, reject) => {
    document.addEventListener("visibilitychange", resolve, { once: true });
    signal.addEventListener("abort", () => reject(signal.reason));
  });
}
