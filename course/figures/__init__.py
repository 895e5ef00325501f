"""What the lessons draw: lesson_NN.py is what lesson NN imports, shared.py what several lessons draw.

The pictures that someone takes home are in qlib/plot.py. Captions are read back from what is drawn where that can be:
picture.py. They cannot where a picture shows only a part of what it speaks of (tiles of a large matrix, some of the
marks, one of many layers that are alike), and where an explorer speaks without drawing a figure.
"""
