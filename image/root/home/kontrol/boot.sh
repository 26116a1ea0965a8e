#!/bin/sh
# The entry point, under an init: find the pod's facts, then become supervisord, or the command given.
[ $# -eq 0 ] || set -- -- "$@"
exec kontrol boot "$@"
