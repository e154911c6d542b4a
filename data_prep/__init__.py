"""Turns raw data sets into the packed format: `python -m data_prep list`.

A source is one module with

    add_arguments(parser)        its own options
    plan(options) -> Plan        what to pack, from the parsed options (see `data_prep.packed.Plan`)

and one line in `data_prep.__main__.SOURCES`, with its title for `list`. Reading may be slow in `decode` only: it runs
in parallel, resumably.

    packed                  the format, and what a source hands over
    writer, shards, join    a plan becomes a packed directory: `writer.write`
    check                   a packed directory against its manifest
"""
