"""Messages on one side, values on the other: conversion, spec files, and errors as gRPC statuses."""
