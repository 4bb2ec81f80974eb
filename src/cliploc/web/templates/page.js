{# What runs in the browser: one function, called when the page has loaded. It is a template because of the texts.
   It returns the page's name for itself, which nobody can guess. #}
() => {
  const html = {{ html | tojson }};  // status lines: waiting, stopped, refused, and problem for a sentence of the server
  const labels = {{ labels | tojson }};  // selector → accessible name of each element in turn
  const settings = {{ settings | tojson }};  // names of the settings, in the order of their components
  const outputs = {{ shown | tojson }};  // what a search shows, in the order of its components
  let search = null;  // ends the search that goes on
  let found = false;  // whether there are results, for the sliders
  let moves = 0;  // of sliders
  let adjusting = Promise.resolve();

  const status = () => document.querySelector("#status");
  const escaped = text => text.replace(/[&<>"']/g, letter => `&#${letter.charCodeAt(0)};`);
  const problem = text => html.problem.replace({{ sentence | tojson }}, () => escaped(text));

  // One request for all that is shown: outputs by name. The server sends a status line now and then, and at last these.
  const ask = async (wish, values, signal) => {
    const given = Object.fromEntries(settings.map((name, i) => [name, values[i]]));
    const response = await fetch(`${window.gradio_config.root}/{{ address }}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...wish, settings: given }),
      signal,
    });
    if (!response.ok) return { status: problem((await response.json()).error) };
    const lines = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = "", end; ; ) {
      const { done, value } = await lines.read();
      if (done) return { status: html.refused };  // the server ended in the middle
      text += value;
      while ((end = text.indexOf("\n")) >= 0) {
        const line = JSON.parse(text.slice(0, end));
        if (line.done) return line.shown;
        status().says(line.shown.status);
        text = text.slice(end + 1);
      }
    }
  };

  // The values of the outputs; what the server does not name stays. The address bar shows the settings of the page, so
  // that a copied address opens the same.
  const show = shown => {
    if (shown.address) {
      found = true;
      history.replaceState(null, "", shown.address);
      shown.address = location.href;
    }
    return outputs.map(name => shown[name]);
  };

  window.cliploc = {
    // Find was pressed; pressed again, it does nothing until the search has ended.
    async find(visitor, photo, exemplar, ...values) {
      if (search) return [];
      const mine = (search = new AbortController());
      status().says(html.waiting);
      // On a telephone the results are below the fold.
      if (status().getBoundingClientRect().top > innerHeight / 2) status().scrollIntoView({ block: "start" });
      try {
        const wish = { visitor, search: true, photo: photo?.path, exemplar: exemplar?.path };
        return show(await ask(wish, values, mine.signal));
      } catch {
        return show({ status: mine.signal.aborted ? html.stopped : html.refused });
      } finally {
        search = null;
      }
    },
    // A slider was moved. One request at a time; of moves that wait for it, the last counts.
    async adjust(visitor, ...values) {
      if (!found) return [];
      const move = ++moves;
      await adjusting;
      if (move !== moves) return [];
      const asked = ask({ visitor, search: false }, values).catch(() => ({ status: html.refused }));
      adjusting = asked;
      return show(await asked);
    },
    // Stop was pressed: the server ends a search that nobody waits for.
    stop() {
      search?.abort();
    },
  };

  // Gradio leaves some controls without an accessible name, and adds and removes parts of the page.
  const label = () => {
    for (const [selector, texts] of Object.entries(labels)) {
      document.querySelectorAll(selector).forEach((element, i) => (element.ariaLabel ||= texts[i] || texts[0]));
    }
  };
  new MutationObserver(label).observe(document.body, { childList: true, subtree: true });
  label();
  return [...crypto.getRandomValues(new Uint8Array(16))].map(byte => byte.toString(16).padStart(2, "0")).join("");
}
