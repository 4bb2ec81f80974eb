{# What runs in the browser: one function, called when the page has loaded. It is a template because of the texts. #}
() => {
  const html = {{ html | tojson }};  // status lines: waiting, stopped, refused
  const labels = {{ labels | tojson }};  // selector → accessible name of each element in turn
  let stopped = false;

  window.cliploc = {
    // Find was pressed. On a telephone the results are below the fold.
    searching() {
      stopped = false;
      const status = document.querySelector("#status");
      if (status.getBoundingClientRect().top > innerHeight / 2) status.scrollIntoView({ block: "start" });
      return html.waiting;
    },
    // Stop was pressed.
    stop() {
      stopped = true;
    },
    // The server did not finish a search; gradio reports a stopped one in the same way.
    failed: () => (stopped ? html.stopped : html.refused),
    // The address bar shows the settings of the page, so that a copied address opens the same.
    address(query) {
      if (query) history.replaceState(null, "", query);
      return location.href;
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
}
