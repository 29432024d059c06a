module msb/libmsb/go

go 1.19
