"""Turns raw data sets into the packed format: `python -m data_prep list`.

A source is one module with

    LICENCE, ACCESS              sentences for `list`: what one may do with the data, and where to ask for them
    add_arguments(parser)        its own options
    plan(options) -> Plan        what to pack, from the parsed options (see `data_prep.packed.Plan`)
    detect(path) -> Layout       optional: whether `path` holds this source, for `detect` (see `data_prep.detect`)

and one line in `data_prep.__main__.SOURCES`, with its title. Reading may be slow in `decode` only: it runs in parallel,
resumably. Sources whose images are files hand a table of them to `data_prep.image_files.plan_images`, which does the
rest: `data_prep.image_folder` is the shortest example.

    packed                  the format, and what a source hands over
    writer, shards, join    a plan becomes a packed directory: `writer.write`
    check                   a packed directory against its manifest
    image_files             rows of image files become a plan
    paths, images, splits   which files may be opened; bytes to pixels; train, val and test
    labels                  classes by name, --classes
    tables, npy             csv and parquet; a number in a npy file
    listed                  rows of a published list: faults, repeats, published counts
    action_units            frames by number, and a label where there is no expression
    plain_pickle            pickles of plain data, without unpickling
    mat_files               MATLAB files of plain data
"""
