/** Times of the programs, RFC 3339 in UTC, and dates. */

const TIME = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)$/;

/**
 * Returns the date of a time of the programs; `null` for a missing one.
 *
 * @param {unknown} text
 */
export function date(text) {
  const found = typeof text === "string" ? TIME.exec(text) : null;
  if (!found) return null;
  const ms = Math.floor(Number(`0${found[2] ?? ""}`) * 1000);
  const whole = Date.parse(`${found[1]}${found[3]}`);
  return Number.isNaN(whole) ? null : new Date(whole + ms);
}

/**
 * Returns a time as the programs read it.
 *
 * @param {string} name
 * @param {Date | number} time
 */
export function rfc3339(name, time) {
  const at = new Date(time);
  if (Number.isNaN(at.getTime())) throw new RangeError(`${name} must be a date`);
  return at.toISOString();
}
