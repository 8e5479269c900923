"""Images without a size limit: windows in, windows out, with what a map needs to know kept.

`windows` is the protocol and the grid of blocks, `geotiff` reads and writes through rasterio, `journal` keeps finished
blocks, `assembling` makes files of them, `polygons` draws areas round labels. Nothing here knows a network.
"""
