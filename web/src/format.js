// Numbers and dates as people read them.
const one = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "long", year: "numeric", timeZone: "UTC" });

const month = new Intl.DateTimeFormat("en-GB", { month: "long", year: "numeric", timeZone: "UTC" });

export const metres = (value) => (value === null || value === undefined ? "unknown" : `${one.format(value)} m`);
export const signed = (value) => (value > 0 ? `+${metres(value)}` : metres(value));
export const percent = (value) => (value === null || value === undefined ? "unknown" : `${whole.format(100 * value)} %`);
const two = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
/** A value with its unit; "1" is the unit of a share. */
export function quantity(value, unit) {
  if (value === null || value === undefined) return "unknown";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return String(value);
  if (unit === "1") return percent(value);
  if (unit === null || unit === undefined) return two.format(value);
  const digits = unit === "ha" ? two : unit === "m²" && value >= 100 ? whole : one;
  return `${digits.format(value)} ${unit}`;
}
/** Two values and their unit once. */
export function span(low, high, unit) {
  const [from, to] = [quantity(low, unit), quantity(high, unit)];
  const tail = to.replace(/^[^ ]+/, "");
  return `${tail && from.endsWith(tail) ? from.slice(0, -tail.length) : from} to ${to}`;
}
export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
export const area = (m2) => (m2 >= 10000 ? `${one.format(m2 / 10000)} ha` : `${whole.format(m2)} m²`);
export const interval = ({ low_m, high_m, level }) =>
  `${one.format(low_m)} to ${one.format(high_m)} m (${Math.round(100 * level)} %)`;

/** Acquisition as a day, a month, a year or a range; the words "date unknown" where the server knows none. */
export function acquired(acquisition) {
  if (!acquisition?.start) return "date unknown";
  const start = new Date(acquisition.start), end = new Date(acquisition.end ?? acquisition.start);
  const after = new Date(end.getTime() + 1000); // an interval ends with the last second of a day
  const firstOfMonth = start.getUTCDate() === 1 && after.getUTCDate() === 1;
  const months = 12 * (after.getUTCFullYear() - start.getUTCFullYear()) + after.getUTCMonth() - start.getUTCMonth();
  if (firstOfMonth && months === 12 && start.getUTCMonth() === 0) return String(start.getUTCFullYear());
  if (firstOfMonth && months === 1) return month.format(start);
  const [first, last] = [day.format(start), day.format(end)];
  return first === last ? first : `${first} to ${last}`;
}
