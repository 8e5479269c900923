"""Labelling tools' own formats: labelme, COCO, CVAT, Label Studio. Shapes are painted in a stated order."""
