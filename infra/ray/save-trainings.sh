#!/bin/sh
# Run on a Ray node that is about to end: it asks this node's trainings to save, and waits until they have, at most
# three minutes. A training is a task named by its stage, or one of Ray Train's workers. On the head it is the runs and
# the jobs there, since Ray ends the trainings of all nodes with them: they end when their trainings have saved.
runs='[^ ]*python[^ ]* ([^ ]*/mav (re)?run|-m flows\.engine\.jobs)( |$)'
trainings=$(pgrep -d , -f "^ray::(clip|train-|RayTrainWorker)|^$runs") || exit 0
echo "$trainings" | tr , '\n' | xargs kill -TERM
for _ in $(seq 180); do
  ps -o stat= -p "$trainings" | grep -qv Z || exit 0 # not by name: Ray Train may have started others since
  sleep 1
done
