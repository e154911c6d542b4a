"""Turns raw data sets into the packed format: `python -m data_prep list`.

A source is one module with

    TITLE                        one line for `list`
    add_arguments(parser)        its own options
    plan(options) -> Plan        what to pack, from the parsed options (see `data_prep.packed.Plan`)

and one line in `data_prep.__main__.SOURCES`. Reading may be slow in `decode` only: it runs in parallel, resumably.
"""
