#!/bin/sh
# The entry point, under an init: find out where we run, then become supervisord, or the command given.
[ $# -eq 0 ] || set -- -- "$@"
exec kontrol boot "$@"
