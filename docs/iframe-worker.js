/* Search for pages that are opened from disk, where browsers refuse workers.

Stands in for Worker with a frame of this page, in which the script of the worker runs. The theme's
search looks for `IFrameWorker` of a parent to know that. */
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = (this.inside = frame.contentWindow);
      this.terminate = () => frame.remove();
      const answer = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.ready = new Promise((resolve) => {
        inside.document.open();
        inside.document.write("<!doctype html><body></body>");
        inside.document.close();
        inside.postMessage = answer;
        inside.importScripts = async (...urls) => {
          for (const source of urls) await load(inside.document, source);
        };
        resolve(load(inside.document, url));
      });
    }
    postMessage(data) {
      const message = () => new this.inside.MessageEvent("message", { data });
      this.ready.then(() => this.inside.dispatchEvent(message()));
    }
  };
  const load = (page, source) =>
    new Promise((resolve, reject) => {
      const script = page.createElement("script");
      Object.assign(script, { src: source, onload: resolve, onerror: reject });
      page.body.append(script);
    });
}
