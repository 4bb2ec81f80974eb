// Asks the server. What it refuses is an error with its sentence.

const CLOSED = "The server did not take the request: it cannot be reached, is shutting down, or too many wait. Try again in a minute.";

/** The server, or something before it, refused a request. */
export class Refusal extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

/** The JSON at an address. */
export async function get(address) {
  return (await answered(fetch(address))).json();
}

/** Sends fields: as JSON, or as a form where one of them is a file. */
export function post(address, fields, signal) {
  let body, headers = {};
  if (Object.values(fields).some(one => one instanceof File)) {
    body = new FormData();
    for (const [name, value] of Object.entries(fields)) body.append(name, value);
  } else {
    body = JSON.stringify(fields);
    headers = { "Content-Type": "application/json" };
  }
  return answered(fetch(address, { method: "POST", body, headers, signal }));
}

/** The last line of an answer that is lines of JSON; the others are told as they come. */
export async function lastLine(response, tell) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = "", end; ; ) {
    const { done, value } = await reader.read();
    if (done) throw new Refusal(0, CLOSED);  // the server ended in the middle
    text += value;
    while ((end = text.indexOf("\n")) >= 0) {
      const line = JSON.parse(text.slice(0, end));
      if (line.done) return line;
      tell(line);
      text = text.slice(end + 1);
    }
  }
}

async function answered(promise) {
  let response, sentence = CLOSED;
  try {
    response = await promise;
  } catch (error) {
    throw error.name === "AbortError" ? error : new Refusal(0, CLOSED);
  }
  if (response.ok) return response;
  try {
    sentence = (await response.json()).error || CLOSED;
  } catch { /* not the server's own answer */ }
  throw new Refusal(response.status, sentence);
}
