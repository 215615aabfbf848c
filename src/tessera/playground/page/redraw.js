// Draws a replaced code at once. Arguments: what the page holds ({codes, position, near}), and the code in the field; where the
// press was in the row of nearest codes there is no second one, and the picture that has the focus says which code.
async (held, code) => {
  if (code === undefined) {
    const pictures = [...document.querySelectorAll("#reconstruct-near .thumbnail-item")];
    code = held?.near[pictures.indexOf(document.activeElement)];
  }
  if (!held || held.position === null || !Number.isInteger(code)) return;
  const images = ["result", "grid"].map((part) => document.querySelector(`#reconstruct-${part} img`));
  const before = images.map((image) => image?.src);
  const answer = await fetch("redraw", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ codes: held.codes, position: held.position, code }),
  });
  if (!answer.ok) return;
  const pictures = await answer.json();
  if (images.some((image, i) => !image || image.src !== before[i])) return; // what came meanwhile is newer
  if (pictures.result) [images[0].src, images[1].src] = [pictures.result, pictures.grid];
}
