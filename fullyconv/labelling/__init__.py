"""`fullyconv label`: a local page on which a network's proposals become labels; every stroke is on the disk before it
is acknowledged.

browser -> `serving.protocol` and `serving.gate` -> `app` (starlette) -> `project` (what is labelled, where it is
  written) strokes   which pixels a stroke covers           edits     what a page may ask for, and what is written down
  of it journal   the edits, one after another, durable  canvas    one image's layers: what the edits make of it
  pyramid   images of any size as tiles            network   proposals and score layers learned on kept features
  worker    the processes in which networks run    rounds    their supervisor: propose, rank, learn, train

A label map is a function of the journal, the accepted proposals and the existing labels, so a killed server loses
nothing: what stood in the journal is replayed.
"""
