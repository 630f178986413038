// Values as people read them.

const NUMBER = new Intl.NumberFormat("en", { maximumFractionDigits: 6 });
const DATE = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "short" });

/** Milliseconds → "1 h 4 min", "12 s". */
export function formatDuration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

/** Unix seconds → "3 min ago". */
export function formatAgo(time) {
  const seconds = Date.now() / 1000 - time;
  return seconds < 5 ? "just now" : `${formatDuration(seconds).split(" ").slice(0, 2).join(" ")} ago`;
}

export function formatDate(time) {
  return DATE.format(new Date(time * 1000));
}

export function formatClock(time) {
  return new Date(time * 1000).toLocaleTimeString("en-GB");
}

export function formatCount(number) {
  return NUMBER.format(number);
}

export function formatBytes(bytes) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let index = 0;
  let value = bytes;
  while (value >= 1024 && index < units.length - 1) {
    value /= 1024;
    index += 1;
  }
  return `${index === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[index]}`;
}

/** A measured number: four digits that say something. */
export function formatMeasure(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return formatCount(value);
  const size = Math.abs(value);
  if (size >= 1000) return formatCount(Math.round(value));
  return size >= 0.001 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
}

/** A number at an axis: no more digits than it has. */
export function formatTick(value) {
  if (value === null) return "";
  if (value !== 0 && Math.abs(value) < 0.001) return value.toExponential().replace("e-", "e−");
  return Math.abs(value) >= 1e6 ? value.toExponential().replace("e+", "e") : formatCount(value);
}

/** The name that a job goes by: what its maker called it, else the end of its id. */
export function nameOf(job) {
  return job.user_provided_suffix || job.id.replace(/^ftjob-(.*)(.{6})$/, "…$2");
}

export const METHODS = {
  supervised: "Supervised",
  dpo: "DPO",
  reinforcement: "Reinforcement",
};

export function methodOf(job) {
  return job.method?.type ?? "supervised";
}

export const FINAL = new Set(["succeeded", "failed", "cancelled"]);
export const STATUSES = {
  validating_files: "Validating files",
  queued: "Queued",
  running: "Running",
  pausing: "Pausing",
  paused: "Paused",
  succeeded: "Succeeded",
  failed: "Failed",
  cancelled: "Cancelled",
};

/** The status, true also where the server was told to show only OpenAI's own. */
export function statusOf(job) {
  return job.x_status ?? job.status;
}
