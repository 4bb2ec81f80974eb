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
  return jsonOf(await answered(fetch(address)));
}

/** Sends fields: as JSON, or as a form where one of them is a file. */
export async function post(address, fields, signal) {
  const files = Object.values(fields).filter(one => one instanceof File);
  let body, headers = {};
  if (files.length) {
    body = new FormData();
    for (const [name, value] of Object.entries(fields)) body.append(name, value);
  } else {
    body = JSON.stringify(fields);
    headers = { "Content-Type": "application/json" };
  }
  try {
    return await answered(fetch(address, { method: "POST", body, headers, signal }));
  } catch (error) {
    for (const file of error.status === 0 ? files : []) {
      await file.slice(0, 1).arrayBuffer().catch(() => { throw new Refusal(0, `${file.name} is not a file that can be read: choose another`); });
    }
    throw error;
  }
}

/** The JSON of an answer. */
export const jsonOf = response => whole(response.json());

/** The last line of an answer that is lines of JSON; the others are told as they come. */
export const lastLine = (response, tell) => whole(last(response, tell));

async function last(response, tell) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = "", end; ; ) {
    const { done, value } = await reader.read();
    if (done) throw new Error("the server ended in the middle");
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
  const response = await whole(promise);
  if (response.ok) return response;
  const said = await response.json().catch(() => null);  // else it is not the server's own answer
  throw new Refusal(response.status, said?.error || CLOSED);
}

/** What was asked for; where it, or a part of it, does not come, a sentence says so. */
async function whole(promise) {
  try {
    return await promise;
  } catch (error) {
    throw error.name === "AbortError" ? error : new Refusal(0, CLOSED);
  }
}
