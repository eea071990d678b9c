//go:build race

package keeper_test

const raceDetector = true
