"""TensorRT engines for a bundle's parts: conversion and building (`engines`), input shapes, and memory estimates."""
