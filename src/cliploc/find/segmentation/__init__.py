"""Open-vocabulary segmentation: a class for every pixel, by the protocol with which papers on CLIP report mIoU."""

from cliploc.find.segmentation.protocol import Protocol, protocol_for, protocol_names, protocol_of
from cliploc.find.segmentation.segmenter import Segmenter, label_map, segmenting_methods
