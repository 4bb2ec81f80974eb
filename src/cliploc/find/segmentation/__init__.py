"""Open-vocabulary segmentation: a class for every pixel, by the protocol with which papers on CLIP report mIoU."""
