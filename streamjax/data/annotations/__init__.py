"""Readers of the annotation files that real data sets come with; each yields frozen dataclasses.

    streamo.read_records        Streamo-Instruct and everything that is converted like it
    et_instruct.read_instructions  E.T. Instruct 164K: questions and answers that name seconds
    videos.read_actions         Kinetics, SSv2: one label per clip
    videos.read_captions        text-video retrieval
    moments.read_grounding      a sentence and when it is true
    moments.read_localization   a class and when it is seen
    masks.read_instances        video instance segmentation, COCO pseudo videos
    masks.read_referred         referring video object segmentation

A bad row is an InputError that names the file and the line (or the record), what was found and what
was wanted. Paths in annotations cannot leave the folder that they are relative to. Whether the
videos exist is found out when they are read.
"""
