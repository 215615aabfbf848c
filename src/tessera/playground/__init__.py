"""The playground: a local page on which a person tries what a run made. `make playground`, docs/playground.md.

Each module computes what one tab shows, from models and arrays to pictures and numbers, and knows nothing of the page:

    workspace    the artefacts that the page plays with, as they are now
    uploads      an uploaded file as a picture in the tokenizer's shape, or an error that says why not
    cells        grids of codes as coloured cells, and which code a click hits
    reconstruct, samples, inpaint, judge, blend, style, compare      the tabs

`page` puts them on a Gradio page. It alone imports Gradio, which only the playground's own environment has.
"""
