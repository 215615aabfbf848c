// Run when the page is loaded. From then on a press that replaces a code is held back until the server has drawn the two pictures
// from what the page holds ({codes, position, near}, which `hold` is told); then Gradio's own events get it, which keep the
// browser busy for longer than the drawing takes. They get it undrawn, and at once, when the next press or key comes, so that all
// come in their order; and where there is no answer in `PATIENCE`.
() => {
  if (window.tessera) return;
  const PATIENCE = 200; // ms
  const field = "#reconstruct-code input", row = "#reconstruct-near .thumbnail-item";
  const seen = new WeakSet(); // presses that have been held back
  let held = null;
  let release = () => {}; // lets a press go that is held back, and drops its drawing

  const redraw = async (code, signal) => {
    const images = ["result", "grid"].map((part) => document.querySelector(`#reconstruct-${part} img`));
    const before = images.map((image) => image?.src);
    const answer = await fetch("redraw", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ codes: held.codes, position: held.position, code }),
      signal,
    });
    const pictures = answer.ok ? await answer.json() : {};
    if (signal.aborted || !pictures.result) return;
    if (images.some((image, i) => !image || image.src !== before[i])) return; // what came meanwhile is newer
    [images[0].src, images[1].src] = [pictures.result, pictures.grid];
    await Promise.all(images.map((image) => image.decode()));
    await new Promise((painted) => requestAnimationFrame(() => setTimeout(painted)));
  };

  const first = (event, code) => {
    if (seen.has(event) || !held || held.position === null || !Number.isInteger(code)) return;
    event.stopImmediatePropagation();
    event.preventDefault();
    const again = new event.constructor(event.type, event);
    seen.add(again);
    const drawing = new AbortController();
    let gone = false;
    const go = () => {
      if (gone) return;
      gone = true;
      drawing.abort();
      event.target.dispatchEvent(again);
    };
    release = go;
    setTimeout(go, PATIENCE);
    redraw(code, drawing.signal).catch(() => {}).then(go); // Gradio's own events say what is wrong
  };
  const typed = () => Number(document.querySelector(field)?.value || NaN);

  for (const kind of ["pointerdown", "keydown", "beforeinput", "input"]) {
    addEventListener(kind, () => release(), { capture: true });
  }
  addEventListener("click", (event) => {
    if (!seen.has(event)) release(); // a click without a pointer, as of a screen reader
    const near = event.target.closest?.(row);
    if (near) first(event, held?.near[[...document.querySelectorAll(row)].indexOf(near)]);
    else if (event.target.closest?.("#reconstruct-put")) first(event, typed());
  }, { capture: true });
  addEventListener("keypress", (event) => {
    if (event.key === "Enter" && event.target.matches?.(field)) first(event, typed());
  }, { capture: true });
  window.tessera = { hold: (now) => { held = now; release(); } };
}
