"""Provision the database servers of the integration tests, with the standard library alone.

`command` is the command line, `fleet` decides what to start and stop, `recipes` says which
servers there are; each recipe module knows one family. `site` is what a recipe works with.
`processes`, `ports`, `packages`, `probes`, `account` and `state` know one mechanism each and
nothing of databases, but for the wire protocols in `probes`.
"""
