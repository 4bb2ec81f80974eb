"""`cliploc check`: which labels of a data set are wrong?"""
