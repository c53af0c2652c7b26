package verify

import "overmount/firmware"

// findFirmware returns which of the names that a module declares are not there,
// and those that are there only compressed, by suffix.
func findFirmware(d *firmware.Dir, names []string) (missing []string, packed map[string][]string, err error) {
	packed = map[string][]string{}
	for _, name := range names {
		var files []firmware.File
		if firmware.IsPattern(name) {
			if files, err = d.Match(name); err != nil {
				return nil, nil, err
			}
		} else if f, ok := d.Find(name); ok {
			files = append(files, f)
		}
		if len(files) == 0 {
			missing = append(missing, name)
		} else if suffix := files[0].Suffix; suffix != "" {
			packed[suffix] = append(packed[suffix], name)
		}
	}
	return missing, packed, nil
}
